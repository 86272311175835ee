"""Token ids back to text that can be read: pieces of whole characters, control tokens apart.

In go the ids of a row and which of them are trained; out come pieces, each the text of one token, or of the several
that make one character together. Nothing is cleaned up: the pieces between two control tokens add up to what the
tokenizer itself decodes there.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Piece", "PieceReader", "to_visible"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # byte fallback, as SentencePiece names its bytes
# Format characters that belong to how words and emoji are written: the joiners of zero width.
_WRITTEN = {"\u200c", "\u200d"}
_OWN_SIGNS = {"↵", "⇥", "‹"}  # and the pictures of control characters, ␀ to ␟


@dataclass(frozen=True, slots=True)
class Piece:
    """What is drawn as one.

    Attributes:
        ids: of the tokens, one or several.
        text: what they stand for; of a control token its name, of bytes that make no character their names.
        trained: whether they carry loss; all of a piece do, or none.
        is_control: a control token, which steers the model and is no text.
        is_bytes: part of a character whose other part is missing or trained otherwise.
    """

    ids: tuple[int, ...]
    text: str
    trained: bool
    is_control: bool = False
    is_bytes: bool = False


class PieceReader:
    """Reads rows of one tokenizer.

    Args:
        tokenizer: whose ids they are.
        headers: further ids that are control tokens: those that the template writes between turns.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", headers: Collection[int] = ()) -> None:
        self._backend = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        self._control_ids = {token_id for token_id, token in added.items() if token.special}
        self._control_ids |= set(tokenizer.all_special_ids) | set(headers)
        self._byte_of_char = _list_byte_characters() if "ByteLevel(" in str(self._backend.decoder) else {}
        self._anchor = self._find_anchor()

    def read(self, ids: Sequence[int], trained: Sequence[bool]) -> list[Piece]:
        """Read a row's ids into pieces, in order.

        Args:
            ids: of the row.
            trained: for each id, whether it carries loss.
        """
        pieces: list[Piece] = []
        group: list[int] = []
        before: list[int] = []  # the ids of the piece to the left, which decide about spaces; at a beginning none

        def finish(is_trained: bool) -> None:
            nonlocal before
            if group:
                piece = self._build_piece(before, group, is_trained)
                before = before if piece.is_bytes else list(group)
                pieces.append(piece)
                group.clear()

        for place, (token, is_trained) in enumerate(zip(ids, trained, strict=True)):
            if group and is_trained != trained[place - 1]:
                finish(not is_trained)
            if token in self._control_ids:
                finish(is_trained)
                pieces.append(Piece((token,), self._backend.id_to_token(token), is_trained, is_control=True))
                before = self._anchor
                continue
            group.append(token)
            if self._find_state(group) != "open":
                finish(is_trained)
        finish(bool(trained) and trained[-1])
        return pieces

    def _build_piece(self, before: list[int], group: list[int], is_trained: bool) -> Piece:
        if self._find_state(group) != "whole":
            spelled = b"".join(map(self._to_bytes, group))
            return Piece(tuple(group), spelled.decode(errors="backslashreplace"), is_trained, is_bytes=True)
        left, both = self._decode(before), self._decode([*before, *group])
        text = both[len(left) :] if both.startswith(left) else self._decode(group)
        return Piece(tuple(group), text, is_trained)

    def _find_state(self, group: list[int]) -> Literal["whole", "open", "broken"]:
        """Find whether tokens make whole characters, lack bytes that may follow, or never will make any."""
        try:
            b"".join(map(self._to_bytes, group)).decode()
        except UnicodeDecodeError as error:
            return "open" if error.reason == "unexpected end of data" else "broken"
        return "whole"

    def _to_bytes(self, token: int) -> bytes:
        name = self._backend.id_to_token(token)
        if name is None:
            raise ValueError(f"the tokenizer has no token {token}")
        byte = _BYTE_TOKEN.fullmatch(name)
        if byte:
            return bytes.fromhex(byte[1])
        if self._byte_of_char:
            return b"".join(
                bytes([self._byte_of_char[char]]) if char in self._byte_of_char else char.encode() for char in name
            )
        return name.encode()

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False) if ids else ""

    def _find_anchor(self) -> list[int]:
        """Find what to decode text behind a control token with.

        SentencePiece puts a space before every text and takes it off again. Some tokenizers do so behind control
        tokens too, as at a beginning: there nothing stands before the text. Others do not: there a word does.
        """
        control = next((self._backend.id_to_token(token) for token in sorted(self._control_ids)), None)
        word = self._backend.encode("a", add_special_tokens=False).ids[-1:]
        if control is None or not word:
            return []
        # Where a space there leaves no trace, there is none to be kept.
        _, *joined = self._backend.encode(f"{control}a", add_special_tokens=False).ids
        _, *behind = self._backend.encode(f"{control} a", add_special_tokens=False).ids
        is_lost = joined != behind and self._decode(behind) == "a"
        return word if is_lost and self._decode([*word, *behind]).endswith(" a") else []


def _list_byte_characters() -> dict[str, int]:
    """List the characters that a byte-level vocabulary writes bytes with.

    Source: GPT-2's encoder: bytes that print stand for themselves, the others for the characters from 256 on.
    """
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(others)}


def to_visible(text: str) -> str:
    """Write text so that nothing in it is unseen or steers a terminal: ↵ before a line break, ⇥ for a tab, ‹U+200B›.

    A sign that this writes with is written by its number where the text has it itself: ↵ in the data is ‹U+21B5›.
    """
    return "".join(_to_visible_character(char) for char in text)


def _to_visible_character(char: str) -> str:
    if char == "\n":
        return "↵\n"
    if char == "\t":
        return "⇥\t"
    if char < " ":
        return chr(0x2400 + ord(char))
    category = unicodedata.category(char)
    is_own_sign = char in _OWN_SIGNS or "\u2400" <= char <= "\u241f"
    is_odd_space = category == "Zs" and char not in (" ", "\u3000")
    if is_own_sign or is_odd_space or (category in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co") and char not in _WRITTEN):
        return f"‹U+{ord(char):04X}›"
    return char
