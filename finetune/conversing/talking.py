"""The model's side of a conversation: whoever is in use answers, in the light of what was said.

In go a speaker, or several on one base, and turns; out come answers, streamed to standard output, and who gave them.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from finetune.conversing.turns import say
from finetune.data.serving import History, build_serving_renderer
from finetune.model.generation import share_positions, stream_answer
from finetune.model.loading import Speaker

__all__ = ["Conversation", "Voices"]


class Voices(Protocol):
    """Who can answer: `model.several` has it for one speaker and for several on one base."""

    @property
    def names(self) -> list[str]:
        """Of all that can be used."""

    @property
    def active(self) -> str:
        """Name of who answers now."""

    @property
    def speaker(self) -> Speaker:
        """Who answers now."""

    def use(self, name: str) -> Speaker:
        """Switch to another one.

        Raises:
            RecipeError: there is none of that name.
        """


class Conversation:
    """A conversation that goes on from one speaker to the next.

    Attributes:
        voices: who can answer, and who does.
    """

    def __init__(
        self,
        voices: Voices,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        shown: bool = True,
    ) -> None:
        """Begin one, and say who answers.

        Args:
            voices: who can answer.
            system: the system message, before the first turn.
            max_new_tokens: tokens of an answer at most; None: the usual number, or what the model has room for.
            temperature: 0 takes the likeliest token each time; 1 samples from the model's own distribution.
            shown: whether each word is printed to standard output as soon as it is whole.

        Raises:
            RecipeError: an answer of that length leaves no positions for a prompt.
        """
        max_prompt_tokens, self._max_answer_tokens = share_positions(voices.speaker.base.model.config, max_new_tokens)
        self._history = History(build_serving_renderer(voices.speaker.tokenizer), max_prompt_tokens, system)
        self._temperature, self._shown = temperature, shown
        self.voices = voices
        self._introduce()

    @property
    def commands(self) -> Mapping[str, Callable[[str], None]]:
        """What a turn may ask for instead of an answer, by the word that it begins with."""
        return {"/reset": self._reset, "/use": self._use, "/adapters": self._list_adapters}

    def reply(self, turn: str, input_text: str = "") -> str:
        """Answer a turn, and keep both for the next one.

        Args:
            turn: what is asked.
            input_text: the text it is about.

        Raises:
            DataError: the turn alone is longer than the model has room for; it is not kept.
        """
        speaker = self.voices.speaker
        prompt_ids, num_left_out = self._history.ask(turn, input_text)
        if num_left_out:
            say(f"(The conversation outgrows the model's positions: its oldest {num_left_out} questions are left out.)")
        answer = stream_answer(
            speaker.model,
            speaker.tokenizer,
            prompt_ids,
            stop_ids=sorted({*self._history.renderer.stop_ids, *speaker.eos_ids}),
            max_new_tokens=self._max_answer_tokens,
            temperature=self._temperature,
            shown=self._shown,
        )
        self._history.keep(answer)
        return answer

    def _reset(self, _: str) -> None:
        self._history.reset()
        say("(forgotten)")

    def _use(self, name: str) -> None:
        speaker = self.voices.use(name)
        # The conversation goes on, in the template of whoever answers now.
        self._history.renderer = build_serving_renderer(speaker.tokenizer)
        self._introduce()

    def _list_adapters(self, _: str) -> None:
        for name in self.voices.names:
            say(f"{'*' if name == self.voices.active else ' '} {name}")

    def _introduce(self) -> None:
        """Say who answers now, and how it is asked where it brings no template."""
        speaker = self.voices.speaker
        if not speaker.tokenizer.chat_template:
            say("No chat template was saved with this tokenizer; asking in Alpaca's form.")
        say(speaker.description)
