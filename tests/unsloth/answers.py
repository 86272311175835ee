"""Greedy answers of saved adapters, opened through one backend as `finetune.chat` opens them.

`python -m tests.unsloth.answers BACKEND PROMPTS.json RUN ...`: the last line of standard output is an object with the
answers of each run and, under `NAME without adapter`, those of its base.
"""

import json
import sys
from pathlib import Path

from finetune.model.backends import start_backend

TOKENS = 24


def main(arguments: list[str]) -> None:
    backend, prompts_path, *runs = arguments
    start_backend(backend)
    prompts = json.loads(Path(prompts_path).read_text(encoding="utf-8"))
    found = {run: answer(run, backend, prompts) for run in runs}
    found["without adapter"] = answer(runs[0], backend, prompts, base_only=True)
    print(json.dumps({"answers": found, "unsloth": "unsloth" in sys.modules}))


def answer(run: str, backend: str, prompts: list[str], *, base_only: bool = False) -> list[str]:
    from finetune.data.examples import Message
    from finetune.data.serving import build_serving_renderer
    from finetune.model.generation import stream_answer
    from finetune.model.loading import load_for_inference

    speaker = load_for_inference(run, base_only=base_only, backend=backend)
    renderer = build_serving_renderer(speaker.tokenizer)
    return [
        stream_answer(
            speaker.model,
            speaker.tokenizer,
            renderer.render_prompt([Message("user", prompt)]),
            stop_ids=sorted({*renderer.stop_ids, *speaker.eos_ids}),
            max_new_tokens=TOKENS,
            shown=False,
        )
        for prompt in prompts
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
