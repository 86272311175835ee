"""Talk to a run, an adapter or a model: an answer to one prompt, or a conversation.

`python -m finetune.chat RUN_OR_ADAPTER [--prompt TEXT] [--system TEXT] [--base] [--adapter NAME=RUN ...]`
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, NoReturn

import typer

from finetune.cli import run_verb, to_text
from finetune.errors import RecipeError
from finetune.recipe.schema import BackendName

__all__ = ["main"]

EPILOG = """\
Examples:
  python -m finetune.chat outputs/quickstart
  python -m finetune.chat outputs/quickstart --prompt "What colour is a lemon?" --json
  python -m finetune.chat outputs/quickstart --base
  python -m finetune.chat outputs/poems --adapter law=outputs/law --prompt "May I?" --use law

In a conversation: /reset forgets it, /exit or Ctrl-D leaves; /adapters lists the adapters, /use NAME
switches to one at once and goes on, /use base to the untouched model. Where standard input is no
terminal, every line of it is a turn."""


def chat(
    target: Annotated[
        str,
        typer.Argument(
            help="A run folder, an adapter folder, a model folder, or a Hub name.",
            metavar="RUN_OR_ADAPTER",
            show_default=False,
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="Answer this and leave.", metavar="TEXT")] = None,
    input_text: Annotated[
        str | None,
        typer.Option("--input", help="With --prompt: the text it is about (Alpaca's `input`).", metavar="TEXT"),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="The system message, before the first turn.", metavar="TEXT")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of an answer at most; by default 256, or half the model's positions if that is less."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest token; 1 samples as it learned.")
    ] = 0.0,
    base: Annotated[
        bool, typer.Option("--base", help="Leave the adapter off: the untouched base, same template.")
    ] = False,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            help="A further run or adapter on the same base, held beside the first; may be repeated.",
            metavar="NAME=RUN",
            show_default=False,
        ),
    ] = None,
    use: Annotated[
        str | None,
        typer.Option(
            help="With --adapter: who answers first. The first one's name is its run's; base is the untouched model.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            help="nf4, fp4, int8 or none; else as trained, or nf4 on a GPU and none on a CPU.", show_default=False
        ),
    ] = None,
    backend: Annotated[
        BackendName, typer.Option(help="What runs the model, no matter what trained the adapter.")
    ] = "transformers",
    any_base: Annotated[
        bool,
        typer.Option("--any-base", help="Go on even if the base's folder holds other weights than the run's."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --prompt: print one object: `answer`, and what it was made with.")
    ] = False,
) -> None:
    """Talk to a run, an adapter or a model: an answer to one prompt, or a conversation."""
    further = _read_adapters(adapters or [])
    _check_of_one_prompt(prompt, input_text, as_json)
    _check_of_several(further, base=base, backend=backend, use=use)

    from finetune.model.backends import start_backend

    start_backend(backend)  # before the libraries that it may change
    from finetune.conversing.talking import Conversation, Voices
    from finetune.conversing.turns import follow, read_turns
    from finetune.model.loading import load_for_inference
    from finetune.model.several import BASE, OneSpeaker, load_adapter_set, to_adapter_name
    from finetune.run.logging import log_to_console  # torch and the libraries: seconds

    with log_to_console():
        voices: Voices
        if further:
            voices = load_adapter_set(target, further, quantization=quantization, any_base=any_base)
            voices.use(use or voices.active)
        else:
            speaker = load_for_inference(
                target, base_only=base, quantization=quantization, backend=backend, any_base=any_base
            )
            is_base = base or speaker.target.adapter_dir is None
            voices = OneSpeaker(BASE if is_base else to_adapter_name(speaker.target), speaker)
        conversation = Conversation(
            voices,
            system=None if system is None else to_text(system),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            shown=not as_json,
        )
        if prompt is None:
            follow(map(to_text, read_turns()), conversation.reply, conversation.commands)
            return
        answer = conversation.reply(to_text(prompt), to_text(input_text or ""))
        if as_json:
            made_with = {"prompt": to_text(prompt), "adapter": voices.active, "model": voices.speaker.description}
            print(json.dumps({"answer": answer} | made_with, ensure_ascii=False))


def _check_of_one_prompt(prompt: str | None, input_text: str | None, as_json: bool) -> None:
    """Check that what goes with a prompt is not asked of a conversation."""
    if prompt is None and (as_json or input_text is not None):
        raise RecipeError(
            f"command line: {'--json' if as_json else '--input'} goes with --prompt.\n"
            "  A conversation needs neither: each line is a turn."
        )


def _check_of_several(further: Mapping[str, str], *, base: bool, backend: str, use: str | None) -> None:
    """Check that --use is asked beside --adapter alone, and what wants one adapter never beside it."""
    if use is not None and not further:
        raise RecipeError("command line: --use goes with --adapter.\n  The target without its adapter: --base")
    if not further:
        return
    if base:
        raise RecipeError("command line: --base and --adapter exclude each other.\n  Who answers first: --use base")
    if backend != "transformers":
        raise RecipeError(
            f"command line: --backend {backend} and --adapter exclude each other.\n"
            "  Unsloth holds one adapter: leave one of the two out."
        )


def _read_adapters(typed: Sequence[str]) -> dict[str, str]:
    """Read `NAME=RUN` of each --adapter."""
    adapters: dict[str, str] = {}
    for item in typed:
        name, mark, place = item.partition("=")
        if not mark or not name.strip() or not place or name in adapters:
            what = f"{name} is named twice" if name in adapters else f"found {item}"
            raise RecipeError(
                f"command line: --adapter wants NAME=RUN, each name once; {what}.\n  E.g. --adapter law=outputs/law"
            )
        adapters[name] = place
    return adapters


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the verb."""
    run_verb(chat, arguments, epilog=EPILOG)


if __name__ == "__main__":
    main()
