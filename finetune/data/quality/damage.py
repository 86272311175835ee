"""Encoding damage: text that was decoded with the wrong encoding, or lost signs on the way.

Three signs of it: what ftfy calls bad and can repair (UTF-8 read as another encoding, e.g. "donâ€™t"), the
replacement character U+FFFD, and control characters that text does not hold. ASCII text has only the last.
"""

import re

from ftfy import fix_encoding
from ftfy.badness import is_bad

from finetune.data.quality.texts import RowTexts

__all__ = ["find_damage"]

# C0 without tab, line feed, vertical tab, form feed, carriage return and escape; delete; C1.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f\ufffd]")
# What ftfy lets stand for want of context and no language writes: Greek, sub- and superscripts and punctuation as
# Windows-1252 (Ï€ for π, â‚‚ for ₂), and punctuation as the old code page 437 of consoles (ΓÇÖ for ’).
_SURE = re.compile(
    "[ÎÏ][\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u00b1-\u00bf]"
    "|â[\u20ac\u201a\u0192\u201e\u2020\u2021\u02c6\u2030][^\\sA-Za-z]|ΓÇ."
)
# Rows about encodings quote damage.
_ABOUT_ENCODINGS = re.compile(
    r"(?i)\b(?:mojibake|utf-?8|unicode|latin-?1|iso-8859|cp125|windows-125|ascii|garbled|replacement character|"
    r"(?:text|character) (?:encoding|set)s?)\b"
)


def find_damage(texts: RowTexts) -> tuple[str, int] | None:
    """Find the first damage of a row: the text that has it and where in it; None: there is none."""
    for text in (texts.prompt, *texts.tails):
        place = _find_place(text)
        if place is not None and not _ABOUT_ENCODINGS.search(texts.last_asked or text):
            return text, place
    return None


def _find_place(text: str) -> int | None:
    found = _CONTROL.search(text)
    if found is None and not text.isascii():
        found = _SURE.search(text)
    if found is not None:
        return found.start()
    if text.isascii() or not is_bad(text):
        return None
    # What ftfy calls bad is rare and possible text; what it can also decode again is damage.
    fixed = fix_encoding(text)
    if fixed == text:
        return None
    return next((place for place, (old, new) in enumerate(zip(text, fixed, strict=False)) if old != new), 0)
