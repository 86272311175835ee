"""Make a run's adapter into what other tools open: a whole 16-bit model.

`python -m finetune.export RUN --merge DIR [--dtype bfloat16|float16|float32]`
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from finetune.cli import run_verb

__all__ = ["main"]

EPILOG = """\
Example:
  python -m finetune.export outputs/quickstart --merge merged/quickstart

The adapter is merged into the weights it saw in training (dequantized where they were held in 4 bits).
What was saved is opened again, and its logits are compared with those of adapter and base."""

# Asked at every position; plain English, so that any model has something to say.
PROMPTS = (
    "What colour is a lemon?",
    "Write two sentences about the sea.",
    "Put these numbers in order: 7, 3, 12, 1.",
    "Why do people keep dogs?",
)


def export(
    target: Annotated[
        str,
        typer.Argument(
            help="A run folder, an adapter folder, or an adapter's Hub name.", metavar="RUN", show_default=False
        ),
    ],
    merge: Annotated[
        Path,
        typer.Option("--merge", help="Write the whole model into this new folder.", metavar="DIR", show_default=False),
    ],
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        typer.Option(help="Precision of the saved weights; float32 takes twice the space."),
    ] = "bfloat16",
    quantization: Annotated[
        str | None,
        typer.Option(
            help="How the base was held in training, if no run says so: nf4, fp4, int8 or none.", show_default=False
        ),
    ] = None,
    any_base: Annotated[
        bool,
        typer.Option("--any-base", help="Go on even if the base's folder holds other weights than the run's."),
    ] = False,
    device: Annotated[
        Literal["auto", "cuda", "cpu"], typer.Option(help="cpu if the GPU has no room for the whole model.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one object: the folder and the differences.")] = False,
) -> None:
    """Make a run's adapter into what other tools open: a whole 16-bit model."""
    import torch  # and the libraries: seconds

    from finetune.data.examples import Message
    from finetune.data.serving import build_serving_renderer
    from finetune.model.loading import load_target
    from finetune.model.merging import check_effect, check_mergeable, check_room, describe_difference, write_merged
    from finetune.model.targets import find_target
    from finetune.run.logging import log_to_console
    from finetune.run.writing import sync_tree

    with log_to_console():
        found = find_target(target, quantization=quantization, device=device)
        check_mergeable(found)
        check_room(merge, needed_bytes=0)
        check_effect(found)
        speaker = load_target(found, talks=False, any_base=any_base)
        print(f"Merging {speaker.description}", file=sys.stderr, flush=True)
        if speaker.base.head == "words":
            renderer = build_serving_renderer(speaker.tokenizer)
            prompts = [renderer.render_prompt([Message("user", text)]) for text in PROMPTS]
        else:
            prompts = [speaker.tokenizer(text)["input_ids"] for text in PROMPTS]
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
        difference = write_merged(speaker, merge, dtypes[dtype], prompts, sync=sync_tree)
    if as_json:
        made_from = {"folder": str(merge), "dtype": dtype, "merged_from": speaker.description}
        print(json.dumps(made_from | asdict(difference)))
        return
    print(f"{merge}: a whole model in {dtype}.\n{describe_difference(difference, speaker.base, len(PROMPTS))}")
    if speaker.base.head == "words":
        print(f"Talk to it: python -m finetune.chat {merge}")
    elif speaker.base.head == "labels":
        print(f'Label texts: pipeline("text-classification", model="{merge}")')


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the verb."""
    run_verb(export, arguments, epilog=EPILOG)


if __name__ == "__main__":
    main()
