"""Talk to a run, an adapter or a model: an answer to one prompt, or a conversation.

`python -m finetune.chat RUN_OR_ADAPTER [--prompt TEXT] [--system TEXT] [--base]`
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from finetune.cli import run_verb
from finetune.errors import RecipeError

if TYPE_CHECKING:
    from finetune.data.examples import Message
    from finetune.data.rendering import Renderer
    from finetune.model.loading import Speaker

__all__ = ["Conversation", "main"]

_MAX_NEW_TOKENS = 256

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

    from finetune.run.logging import log_to  # torch and the libraries: seconds

    with log_to(None):
        talk(
            target,
            prompt=prompt,
            input_text=input_text or "",
            system=system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            base_only=base,
            quantization=quantization,
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
    as_json: bool,
) -> None:
    """Load the target and answer: the prompt, or turn by turn."""
    from finetune.model.generation import stream_answer
    from finetune.model.loading import load_for_inference

    speaker = load_for_inference(target, base_only=base_only, quantization=quantization)
    renderer = build_renderer(speaker)
    _say(speaker.description)
    max_prompt_tokens, max_answer_tokens = share_positions(speaker, max_new_tokens)
    stop_ids = sorted({*renderer.stop_ids, *speaker.eos_ids})

    def answer(prompt_ids: list[int]) -> str:
        return stream_answer(
            speaker.model,
            speaker.tokenizer,
            prompt_ids,
            stop_ids=stop_ids,
            max_new_tokens=max_answer_tokens,
            temperature=temperature,
            shown=not as_json,
        )

    conversation = Conversation(renderer, max_prompt_tokens, system)
    if prompt is None:
        hold(conversation, read_turns(), answer)
        return
    given = answer(conversation.ask(prompt, input_text))
    if as_json:
        print(json.dumps({"answer": given, "prompt": prompt, "model": speaker.description}, ensure_ascii=False))


def build_renderer(speaker: "Speaker") -> "Renderer":
    """Build what turns turns into tokens: the template saved with the tokenizer, Alpaca's where there is none."""
    from finetune.data.rendering import Renderer
    from finetune.data.templates import load_template

    name = "model" if speaker.tokenizer.chat_template else "alpaca"
    if name == "alpaca":
        _say("No chat template was saved with this tokenizer; asking in Alpaca's form.")
    return Renderer(load_template(name, speaker.tokenizer), speaker.tokenizer)


def share_positions(speaker: "Speaker", max_new_tokens: int | None) -> tuple[int | None, int]:
    """Share the model's positions between prompt and answer: tokens of each at most; None where nothing limits them.

    Raises:
        RecipeError: the answer asked for leaves no room for a prompt.
    """
    from finetune.model.base import find_position_limit

    limit = find_position_limit(speaker.base.model.config)
    if limit is None:
        return None, max_new_tokens or _MAX_NEW_TOKENS
    asked = max_new_tokens or min(_MAX_NEW_TOKENS, limit // 2)
    if asked >= limit:
        raise RecipeError(
            f"--max-new-tokens {asked}: the model has positions for {limit} tokens, prompt and answer together.\n"
            f"  Ask for fewer: --max-new-tokens {limit // 2}"
        )
    return limit - asked, asked


@dataclass
class Conversation:
    """The turns so far, and their prompt within the tokens there is room for."""

    renderer: "Renderer"
    max_prompt_tokens: int | None
    system: str | None = None

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every turn but the system message."""
        self.turns: list[Message] = []

    def ask(self, content: str, input_text: str = "") -> list[int]:
        """Add the user's turn and render the prompt; the oldest turns go where they no longer fit, which is said.

        Raises:
            RecipeError: the turn alone is longer than the model's positions.
        """
        from finetune.data.examples import Message

        self.turns.append(Message("user", content, input_text))
        num_before = len(self.turns)
        ids = self._render()
        while self.max_prompt_tokens is not None and len(ids) > self.max_prompt_tokens:
            if len(self.turns) == 1:
                self.turns.clear()
                raise RecipeError(
                    f"This turn has {len(ids)} tokens, and before the answer there is room for "
                    f"{self.max_prompt_tokens}.\n"
                    "  Make it shorter, or the answer: --max-new-tokens N"
                )
            del self.turns[:2]  # a question and its answer
            ids = self._render()
        if len(self.turns) < num_before:
            dropped = (num_before - len(self.turns)) // 2
            _say(f"(The conversation is longer than the model's positions: its oldest {dropped} turns are left out.)")
        return ids

    def keep(self, answer: str) -> None:
        """Add the assistant's turn."""
        from finetune.data.examples import Message

        self.turns.append(Message("assistant", answer))

    def _render(self) -> list[int]:
        from finetune.data.examples import Message

        system = [Message("system", self.system)] if self.system else []
        return self.renderer.render_prompt([*system, *self.turns])


def hold(conversation: Conversation, turns: Iterator[str], answer: Callable[[list[int]], str]) -> None:
    """Hold a conversation until its turns end or one says `/exit`."""
    for turn in turns:
        command = turn.strip()
        if command == "/exit":
            return
        if command == "/reset":
            conversation.reset()
            _say("(forgotten)")
        elif command:
            try:
                prompt_ids = conversation.ask(turn)
            except RecipeError as error:
                _say(str(error))
                continue
            conversation.keep(answer(prompt_ids))


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
