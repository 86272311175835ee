"""A person's turns to the prompt that is answered next.

In go turns as typed; out come the ids of a prompt in the template that was saved with the tokenizer,
never longer than the model has room for.
"""

from typing import TYPE_CHECKING

from finetune.data.examples import Message
from finetune.data.rendering import Renderer
from finetune.data.templates import load_template
from finetune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["History", "build_serving_renderer"]


def build_serving_renderer(tokenizer: "PreTrainedTokenizerBase") -> Renderer:
    """Build the renderer of the template saved with a tokenizer; of Alpaca's where none was."""
    return Renderer(load_template("model" if tokenizer.chat_template else "alpaca", tokenizer), tokenizer)


class History:
    """The turns of a conversation so far.

    Attributes:
        renderer: of the model's template.
        max_prompt_tokens: tokens that a prompt may have; None: no limit.
        system: the system message, which stays when turns are forgotten or left out.
        turns: the user's and the assistant's, in order.
    """

    def __init__(self, renderer: Renderer, max_prompt_tokens: int | None, system: str | None = None) -> None:
        self.renderer = renderer
        self.max_prompt_tokens = max_prompt_tokens
        self.system = system
        self.turns: list[Message] = []

    def ask(self, content: str, input_text: str = "") -> tuple[list[int], int]:
        """Add the user's turn and render the prompt.

        Returns:
            The prompt, and how many of the oldest questions were left out with their answers to make room.

        Raises:
            DataError: the turn alone is longer than the room there is; it is not kept.
        """
        turns = [*self.turns, Message("user", content, input_text)]
        num_left_out = 0
        while True:
            prompt_ids = self._render(turns)
            if self.max_prompt_tokens is None or len(prompt_ids) <= self.max_prompt_tokens:
                self.turns = turns
                return prompt_ids, num_left_out
            if len(turns) == 1:
                raise DataError(
                    f"This turn has {len(prompt_ids)} tokens, and before the answer there is room for "
                    f"{self.max_prompt_tokens}.\n  Make it shorter, or the answer: --max-new-tokens N"
                )
            turns = turns[2:]  # a question and its answer
            num_left_out += 1

    def keep(self, answer: str) -> None:
        """Add the assistant's turn."""
        self.turns.append(Message("assistant", answer))

    def reset(self) -> None:
        """Forget every turn."""
        self.turns = []

    def _render(self, turns: list[Message]) -> list[int]:
        return self.renderer.render_prompt([*([Message("system", self.system)] if self.system else []), *turns])
