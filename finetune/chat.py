"""Talk to a run, an adapter or a model: an answer to one prompt, or a conversation.

`python -m finetune.chat RUN_OR_ADAPTER [--prompt TEXT] [--system TEXT] [--base] [--adapter NAME=RUN ...]`
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NoReturn, Protocol

import typer

from finetune.cli import run_verb, to_text
from finetune.errors import DataError, RecipeError
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
        typer.Option("--any-base", help="Go on where the base's folder holds other weights than were trained on."),
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
    from finetune.model.loading import load_for_inference
    from finetune.model.several import BASE, OneSpeaker, load_adapter_set, to_adapter_name
    from finetune.run.logging import log_to_console  # torch and the libraries: seconds

    with log_to_console():
        held: Voices
        if further:
            held = load_adapter_set(target, further, quantization=quantization, any_base=any_base)
            held.use(use or held.active)
        else:
            speaker = load_for_inference(
                target, base_only=base, quantization=quantization, backend=backend, any_base=any_base
            )
            is_base = base or speaker.target.adapter_dir is None
            held = OneSpeaker(BASE if is_base else to_adapter_name(speaker.target), speaker)
        talk(
            held,
            prompt=None if prompt is None else to_text(prompt),
            input_text=to_text(input_text or ""),
            system=None if system is None else to_text(system),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            as_json=as_json,
        )


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


class Voices(Protocol):
    """Who can answer: `finetune.model.several` has it for one speaker and for several on one base."""

    @property
    def names(self) -> list[str]:
        """Of all that can be used."""

    @property
    def active(self) -> str:
        """Name of who answers now."""

    @property
    def speaker(self) -> Any:
        """Who answers now."""

    def use(self, name: str) -> object:
        """Switch to another one."""


def talk(
    held: Voices,
    *,
    prompt: str | None,
    input_text: str,
    system: str | None,
    max_new_tokens: int | None,
    temperature: float,
    as_json: bool,
) -> None:
    """Let whoever is in use answer: the prompt, or turn by turn."""
    from finetune.data.serving import History, build_serving_renderer
    from finetune.model.generation import share_positions, stream_answer

    max_prompt_tokens, max_answer_tokens = share_positions(held.speaker.base.model.config, max_new_tokens)
    history = History(build_serving_renderer(held.speaker.tokenizer), max_prompt_tokens, system)
    introduce(held)

    def reply(turn: str) -> str:
        speaker = held.speaker
        prompt_ids, num_left_out = history.ask(turn, input_text)
        if num_left_out:
            _say(
                f"(The conversation outgrows the model's positions: its oldest {num_left_out} questions are left out.)"
            )
        answer = stream_answer(
            speaker.model,
            speaker.tokenizer,
            prompt_ids,
            stop_ids=sorted({*history.renderer.stop_ids, *speaker.eos_ids}),
            max_new_tokens=max_answer_tokens,
            temperature=temperature,
            shown=not as_json,
        )
        history.keep(answer)
        return answer

    def reset(_: str) -> None:
        history.reset()
        _say("(forgotten)")

    def use(name: str) -> None:
        held.use(name)
        # The conversation goes on, in the template of whoever answers now.
        history.renderer = build_serving_renderer(held.speaker.tokenizer)
        introduce(held)

    def list_adapters(_: str) -> None:
        for name in held.names:
            _say(f"{'*' if name == held.active else ' '} {name}")

    if prompt is None:
        hold_conversation(read_turns(), reply, {"/reset": reset, "/use": use, "/adapters": list_adapters})
        return
    answer = reply(prompt)
    if as_json:
        made_with = {"prompt": prompt, "adapter": held.active, "model": held.speaker.description}
        print(json.dumps({"answer": answer} | made_with, ensure_ascii=False))


def introduce(held: Voices) -> None:
    """Say who answers now, and how it is asked where it brings no template."""
    if not held.speaker.tokenizer.chat_template:
        _say("No chat template was saved with this tokenizer; asking in Alpaca's form.")
    _say(held.speaker.description)


def hold_conversation(
    turns: Iterator[str], reply: Callable[[str], object], commands: Mapping[str, Callable[[str], None]]
) -> None:
    """Reply to each turn until they end or one says `/exit`; a turn that cannot be asked is told and passed over."""
    for turn in turns:
        command, _, rest = turn.strip().partition(" ")
        if command == "/exit":
            return
        if not command:
            continue
        try:
            if command in commands:
                commands[command](rest.strip())
            else:
                reply(turn)
        except (DataError, RecipeError) as error:
            _say(str(error))


def read_turns() -> Iterator[str]:
    """Read the user's turns: asked for at a terminal, else the lines of standard input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield to_text(line.rstrip("\n"))
        return
    _load_line_editing()
    print("/reset forgets the conversation, /use NAME switches, /exit or Ctrl-D leaves.", file=sys.stderr)
    while True:
        try:
            yield to_text(input("> "))
        except EOFError:
            print(file=sys.stderr)
            return


def _load_line_editing() -> None:
    """Let `input` know the arrow keys; Python for Windows comes without."""
    if sys.platform != "win32":
        import readline  # noqa: F401


def _say(line: str) -> None:
    """Tell the person, not the pipe."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the verb."""
    run_verb(chat, arguments, epilog=EPILOG)


if __name__ == "__main__":
    main()
