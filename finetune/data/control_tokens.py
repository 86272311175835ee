"""Control tokens in the text of rows, such as </s> or <|im_start|>.

A tokenizer turns them into the ids that steer the model wherever they stand, so a row that quotes one
would end its own turn, or speak in another's name. In goes a text of the user's, out comes one in
which the tokenizer finds none. Which tokens count is the tokenizer's own list, and what a template writes
between turns.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune.data.examples import Origin
from finetune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ControlTokens", "Policy", "RowGuard", "build_control_tokens"]

Policy = Literal["escape", "error", "allow"]

# Put behind the token's first character. The first two cannot be seen; a tokenizer whose normalizer
# drops both gets a plain space.
_BREAKS = ("\u200b", "\u2060", " ")
_MAX_ROUNDS = 8  # breaking one token can bare another that overlapped it


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """The control tokens of a tokenizer and what happens to those in a row's text.

    Attributes:
        ids: their ids.
        texts: what stands for them.
        policy: `escape` breaks them up, `error` stops, `allow` lets them through.
        written: finds them as they are written.
        unknown_id: of the unknown token, which any word outside the vocabulary gives too; None: there is none.
        found_otherwise: whether the tokenizer also finds one written in another way (other case, other form).
        backend: the tokenizer, neither cutting nor padding.
    """

    ids: frozenset[int]
    texts: frozenset[str]
    policy: Policy
    written: re.Pattern[str]
    unknown_id: int | None
    found_otherwise: bool
    backend: Any

    def guard(self, text: str, place: str) -> str:
        """Guard one text that stands by itself, as `RowGuard.guard` does."""
        return self.open_row(place).guard(text)

    def open_row(self, place: Origin | str) -> "RowGuard":
        """Open a row whose texts are to be guarded and whose control tokens counted."""
        return RowGuard(self, place)

    def find(self, text: str) -> list[tuple[int, int]]:
        """Find the control tokens in a text: the characters that each takes."""
        if not (self.found_otherwise or self.written.search(text)):
            return []
        return self._encode_and_find(text)

    def _encode_and_find(self, text: str) -> list[tuple[int, int]]:
        encoded = self.backend.encode(text, add_special_tokens=False)
        return [
            (start, end)
            for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True)
            if token in self.ids and (token != self.unknown_id or self.written.fullmatch(text[start:end].strip()))
        ]

    def break_up(self, text: str, place: Origin | str) -> str:
        """Put a sign into every control token of a text, so that the tokenizer finds none.

        Raises:
            DataError: no sign serves this tokenizer.
        """
        for sign in _BREAKS:
            broken = text
            for _ in range(_MAX_ROUNDS):
                found = self._encode_and_find(broken)
                if not found:
                    return broken
                for start, end in reversed(found):
                    # A token may take the spaces before it along.
                    first = end - len(broken[start:end].lstrip()) + 1
                    broken = broken[:first] + sign + broken[first:]
        raise DataError(
            f"{place}: a control token in the text cannot be broken up for this tokenizer.\n"
            f"  Take it out, or let it through: `data.special_tokens_in_data: allow`."
        )


@dataclass(slots=True)
class RowGuard:
    """Takes the control tokens out of one row's texts.

    Attributes:
        control: what counts as one, and what happens to it.
        place: where the row stands, for the message.
        num_found: control tokens met so far, broken up or let through.
    """

    control: ControlTokens
    place: Origin | str
    num_found: int = 0

    def guard(self, text: str) -> str:
        """Return the text with no control token in it, or as it is where they are allowed.

        Args:
            text: of a message, an input, a tool's output or a document.

        Raises:
            DataError: one is found and the policy is `error`, or it cannot be broken up.
        """
        found = self.control.find(text)
        if not found:
            return text
        self.num_found += len(found)
        match self.control.policy:
            case "allow":
                return text
            case "escape":
                return self.control.break_up(text, self.place)
            case "error":
                start, end = found[0]
                raise DataError(
                    f"{self.place}: the control token {text[start:end].strip()!r} stands in the text.\n"
                    f"  The model would read it as the end of a turn or the start of another's.\n"
                    f"  Take it out, or let it be broken up: `data.special_tokens_in_data: escape`."
                )

    def guard_all(self, value: Any) -> Any:
        """Guard every text in a JSON value: tool definitions and calls."""
        if isinstance(value, str):
            return self.guard(value)
        if isinstance(value, dict):
            return {self.guard(key): self.guard_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.guard_all(item) for item in value]
        return value


def build_control_tokens(
    tokenizer: "PreTrainedTokenizerBase", backend: Any, policy: Policy, headers: Collection[int] = ()
) -> ControlTokens:
    """Build from the tokenizer's special tokens, those it names and those that were added.

    Args:
        tokenizer: whose tokens they are.
        backend: its copy that neither cuts nor pads.
        policy: what happens to them.
        headers: added tokens that count too though the tokenizer does not call them special: those between turns.
    """
    added = tokenizer.added_tokens_decoder
    special = {token_id for token_id, token in added.items() if token.special}
    ids = special | set(tokenizer.all_special_ids) | set(headers)
    texts = {str(added.get(token_id) or tokenizer.convert_ids_to_tokens(token_id)) for token_id in ids}
    written = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    return ControlTokens(
        ids=frozenset(ids),
        texts=frozenset(texts),
        policy=policy,
        written=re.compile(written or r"(?!)"),
        unknown_id=tokenizer.unk_token_id,
        found_otherwise=backend.normalizer is not None
        and any(token.normalized for token_id, token in added.items() if token_id in ids),
        backend=backend,
    )
