"""What `finetune.sft` answers to each of several recipes, in one process.

`python -m tests.unsloth.exits RECIPE.yaml ...`: a line of JSON for each on standard output: exit code, message, whether
torch has been imported, and the process's seconds of computing so far.
"""

import contextlib
import io
import json
import sys
import time

from finetune.sft import main


def ask(path: str) -> dict[str, object]:
    sys.argv = ["finetune sft", path]
    code: object = None
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as left:
            code = left.code
    return {
        "code": code,
        "message": said.getvalue(),
        "torch": "torch" in sys.modules,
        "seconds": time.process_time(),
    }


if __name__ == "__main__":
    for recipe in sys.argv[1:]:
        print(json.dumps(ask(recipe)), flush=True)
