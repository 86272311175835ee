"""Rows in another language than the set's main one: prompt and answer both, so that a translation is none.

In go a row's texts, out comes its language; py3langid's model (1 MB, 0.8 s to load) is loaded at the first question.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from finetune.data.quality.texts import RowTexts

__all__ = [
    "UNKNOWN",
    "find_main_language",
    "find_other_answer",
    "find_other_language",
    "identify_answer",
    "identify_asked",
]

UNKNOWN = ""
# Characters of a text that are looked at: confidence grows no further, time does (0.5 µs a character).
_MAX_CHARACTERS = 300
_MIN_CONFIDENCE = 0.5
# Neighbours such as Spanish and Catalan share what confidence there is; what counts is how little the main one gets.
_MAX_CONFIDENCE_OF_MAIN = 0.02
_MIN_CONFIDENCE_OF_PART = 0.3
# Letters below which a language is a guess. Letters beyond Latin count for two, those of scripts that set no spaces
# for three: fewer of them tell a language.
_MIN_LETTERS = 30
_MIN_LETTERS_OF_PART = 12
# An answer by itself: names, dishes and titles are often foreign, sentences are not.
_MIN_LETTERS_OF_ANSWER = 50
_MIN_WORDS_OF_ANSWER = 8
_MIN_CONFIDENCE_OF_ANSWER = 0.9
_LETTER = re.compile(r"[^\W\d_]")
_UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_BEYOND_LATIN = re.compile("[\u0370-\u1dff\u2c00-\ud7ff]")

# What is quoted is what the row works on, not the language it is written in; code is in none.
_QUOTED = re.compile(
    "```.*?(?:```|\\Z)|`[^`\n]*`|\"[^\"\n]*\"|“[^”\n]*”|«[^»\n]*»|„[^“”\n]*[“”]|(?<!\\w)'[^'\n]*'(?!\\w)", re.DOTALL
)
_CODE = re.compile("```.*?(?:```|\\Z)", re.DOTALL)
_PARTS = re.compile(r"[\n:]+")
_ABOUT_LANGUAGES = re.compile(
    r"(?i)\b(?:translat\w+|languages?|spoken in|how (?:do|would) (?:you|i|we) say|arabic|chinese|mandarin|czech|danish|"
    r"dutch|english|finnish|french|german|greek|hebrew|hindi|hungarian|indonesian|italian|japanese|korean|latin|"
    r"norwegian|persian|polish|portuguese|romanian|russian|spanish|swedish|thai|turkish|ukrainian|vietnamese)\b"
)


@cache
def _load_identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Nigerian Pidgin has English words: headlines about Nigeria would be taken for it.
    identifier.set_languages([language for language in identifier.labels if language != "pcm"])
    return identifier


def _identify(text: str) -> tuple[str, float]:
    return _load_identifier().classify(text[:_MAX_CHARACTERS])


def _count_letters(text: str) -> int:
    text = text[:_MAX_CHARACTERS]
    letters = len(_LETTER.findall(text))
    return letters if text.isascii() else letters + len(_BEYOND_LATIN.findall(text)) + len(_UNSPACED.findall(text))


def _join_asked(texts: RowTexts) -> str:
    asked = " ".join(texts.asked)[: 4 * _MAX_CHARACTERS]
    plain = _QUOTED.sub(" ", asked)
    return plain if _count_letters(plain) >= _MIN_LETTERS_OF_PART else asked


def identify_asked(texts: RowTexts) -> tuple[str, bool]:
    """Identify the language of what was asked, and whether that is sure; unknown where there are too few letters."""
    asked = _join_asked(texts)
    if _count_letters(asked) < _MIN_LETTERS_OF_PART:
        return UNKNOWN, False
    language, confidence = _identify(asked)
    return language, confidence >= _MIN_CONFIDENCE


def identify_answer(texts: RowTexts) -> str:
    """Identify the language of the last answer; unknown where it is short, or code, or not clearly in one."""
    answer = texts.tails[-1][:_MAX_CHARACTERS] if texts.tails and texts.last_asked else ""
    if "```" in answer or _count_letters(answer) < _MIN_LETTERS_OF_ANSWER:
        return UNKNOWN
    if len(answer.split()) < _MIN_WORDS_OF_ANSWER and not _UNSPACED.search(answer):
        return UNKNOWN
    language, confidence = _identify(answer)
    return language if confidence >= _MIN_CONFIDENCE_OF_ANSWER else UNKNOWN


def find_main_language(languages: Iterable[tuple[str, bool]]) -> tuple[str, Counter[str]]:
    """Find the language that most rows are surely in, and how many rows are in each."""
    counts = Counter(language for language, is_sure in languages if is_sure)
    if not counts:
        return UNKNOWN, counts
    return min(counts, key=lambda language: (-counts[language], language)), counts


def find_other_language(texts: RowTexts, main: str) -> str | None:
    """Find the language of a row whose prompt and answer are both in another one than the main; None: they are not."""
    asked = _join_asked(texts)
    answer = _CODE.sub(" ", texts.tails[-1] if texts.tails else "")
    whole = f"{asked[:_MAX_CHARACTERS]}\n{answer}" if texts.last_asked else asked
    if _count_letters(whole[: 2 * _MAX_CHARACTERS]) < _MIN_LETTERS:
        return None
    ranked = _load_identifier().rank(whole[: 2 * _MAX_CHARACTERS])
    language = ranked[0][0]
    if language == main or dict(ranked).get(main, 0.0) > _MAX_CONFIDENCE_OF_MAIN or _ABOUT_LANGUAGES.search(asked):
        return None
    parts = [part for text in texts.asked for part in _PARTS.split(text[:_MAX_CHARACTERS])]
    if texts.last_asked:
        parts.append(answer)
    # A document may begin with a motto in another language.
    for text in texts.asked:
        if len(text) > 3 * _MAX_CHARACTERS:
            parts += [text[len(text) // 2 :][:_MAX_CHARACTERS], text[-_MAX_CHARACTERS:]]
    return None if any(_is_in(main, part) for part in parts) else language


def find_other_answer(texts: RowTexts, main: str) -> str | None:
    """Find the language of an answer that nobody asked for in another one than the main; None: it is none.

    Both halves are in it, and no line of what was asked is, nor speaks of languages.
    """
    answer, asked = texts.tails[-1], " ".join(texts.asked)
    language = identify_answer(texts)
    if language in (main, UNKNOWN) or _ABOUT_LANGUAGES.search(asked) or _CODE.search(asked):
        return None
    middle = min(len(answer), 2 * _MAX_CHARACTERS) // 2
    for half in (answer[:middle], answer[middle : 2 * middle]):
        ranked = _load_identifier().rank(half)
        if ranked[0][0] == main or dict(ranked).get(main, 0.0) > _MAX_CONFIDENCE_OF_MAIN:
            return None
    lines = [line for text in texts.asked for line in _PARTS.split(text)]
    return None if any(_is_in(language, line[:_MAX_CHARACTERS]) for line in lines) else language


def _is_in(language: str, part: str) -> bool:
    if _count_letters(part) < _MIN_LETTERS_OF_PART:
        return False
    found, confidence = _identify(part)
    return found == language and confidence >= _MIN_CONFIDENCE_OF_PART
