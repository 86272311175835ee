"""Talk to a run, an adapter or a model: an answer to one prompt, or a conversation.

`python -m finetune.chat RUN_OR_ADAPTER [--prompt TEXT] [--system TEXT] [--base]`
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NoReturn

import typer

from finetune.cli import run_verb
from finetune.errors import DataError, RecipeError
from finetune.recipe.schema import BackendName

__all__ = ["main"]

EPILOG = """\
Examples:
  python -m finetune.chat outputs/quickstart
  python -m finetune.chat outputs/quickstart --prompt "What colour is a lemon?" --json
  python -m finetune.chat outputs/quickstart --base

In a conversation: /reset forgets it, /exit or Ctrl-D leaves. Where standard input is no terminal,
every line of it is a turn."""


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
    quantization: Annotated[
        str | None,
        typer.Option(
            help="nf4, fp4, int8 or none; else as trained, or nf4 on a GPU and none on a CPU.", show_default=False
        ),
    ] = None,
    backend: Annotated[
        BackendName, typer.Option(help="What runs the model, no matter what trained the adapter.")
    ] = "transformers",
    as_json: Annotated[
        bool, typer.Option("--json", help="With --prompt: print one object, `answer` and what it was made with.")
    ] = False,
) -> None:
    """Talk to a run, an adapter or a model: an answer to one prompt, or a conversation."""
    if prompt is None and (as_json or input_text is not None):
        raise RecipeError(
            f"command line: {'--json' if as_json else '--input'} goes with --prompt.\n"
            "  A conversation needs neither: each line is a turn."
        )

    from finetune.model.backends import start_backend

    start_backend(backend)  # before the libraries that it may change
    from finetune.run.logging import log_to_console  # torch and the libraries: seconds

    with log_to_console():
        talk(
            target,
            prompt=prompt,
            input_text=input_text or "",
            system=system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            base_only=base,
            quantization=quantization,
            backend=backend,
            as_json=as_json,
        )


def talk(
    target: str,
    *,
    prompt: str | None,
    input_text: str,
    system: str | None,
    max_new_tokens: int | None,
    temperature: float,
    base_only: bool,
    quantization: str | None,
    backend: BackendName,
    as_json: bool,
) -> None:
    """Load the target and answer: the prompt, or turn by turn."""
    from finetune.data.serving import History, build_serving_renderer
    from finetune.model.generation import share_positions, stream_answer
    from finetune.model.loading import load_for_inference

    speaker = load_for_inference(target, base_only=base_only, quantization=quantization, backend=backend)
    renderer = build_serving_renderer(speaker.tokenizer)
    if not speaker.tokenizer.chat_template:
        _say("No chat template was saved with this tokenizer; asking in Alpaca's form.")
    _say(speaker.description)
    max_prompt_tokens, max_answer_tokens = share_positions(speaker.base.model.config, max_new_tokens)
    history = History(renderer, max_prompt_tokens, system)

    def reply(turn: str) -> str:
        prompt_ids, num_left_out = history.ask(turn, input_text)
        if num_left_out:
            _say(
                f"(The conversation outgrows the model's positions: its oldest {num_left_out} questions are left out.)"
            )
        answer = stream_answer(
            speaker.model,
            speaker.tokenizer,
            prompt_ids,
            stop_ids=sorted({*renderer.stop_ids, *speaker.eos_ids}),
            max_new_tokens=max_answer_tokens,
            temperature=temperature,
            shown=not as_json,
        )
        history.keep(answer)
        return answer

    if prompt is None:
        hold_conversation(read_turns(), reply, history.reset)
        return
    answer = reply(prompt)
    if as_json:
        print(json.dumps({"answer": answer, "prompt": prompt, "model": speaker.description}, ensure_ascii=False))


def hold_conversation(turns: Iterator[str], reply: Callable[[str], object], reset: Callable[[], None]) -> None:
    """Reply to each turn until they end or one says `/exit`; a turn that cannot be asked is told and passed over."""
    for turn in turns:
        command = turn.strip()
        if command == "/exit":
            return
        if command == "/reset":
            reset()
            _say("(forgotten)")
        elif command:
            try:
                reply(turn)
            except DataError as error:
                _say(str(error))


def read_turns() -> Iterator[str]:
    """Read the user's turns: asked for at a terminal, else the lines of standard input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    _load_line_editing()
    print("/reset forgets the conversation, /exit or Ctrl-D leaves.", file=sys.stderr)
    while True:
        try:
            yield input("> ")
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
