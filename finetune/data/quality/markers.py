"""Leftovers of prompt templates: marks that a template puts around turns, standing in the rows' own text.

A mark counts where a template would have put it, at the start or the end of a line, and not where a text speaks of
it: in backticks, in quotes, in a block of code, or on a line that names tokens, tags or templates.
Sources of the marks: the templates of Alpaca, Llama 2 and Mistral, ChatML, Llama 3, Gemma, Phi-3, Zephyr and Vicuna,
and the dialogues of HH.
"""

import re

from finetune.data.quality.texts import RowTexts

__all__ = ["find_leftover"]

_CONTROL = (
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|start_header_id|end_header_id|begin_of_text|end_of_text|"
    r"user|assistant|system|end|endofprompt|startoftext|prompter|eos|bos|pad|human|bot|endofturn|end_of_turn|"
    r"start_of_role|end_of_role|finetune_right_pad_id|begin_of_sentence|end_of_sentence|tool|observation)\|>|"
    r"<(?:start_of_turn|end_of_turn|bos|eos)>|<\uff5c[\w\u2581 ]+\uff5c>|\[/?INST\]|<</?SYS>>|"
    r"\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]"
)
# A quick look whether anything may be there at all; most rows end here.
_ANY = re.compile(rf"{_CONTROL}|</?s>|###|^[ \t>*]*(?:Human|Assistant|USER|ASSISTANT|User|GPT|Bot|AI) ?:", re.MULTILINE)
_CONTROL_AT_EDGE = re.compile(rf"^[ \t]*(?:{_CONTROL})|(?:{_CONTROL})[ \t]*$", re.MULTILINE)
# In an answer also within a line, where the prompt is not about marks: two answers run together.
_CONTROL_ANYWHERE = re.compile(_CONTROL)
# Two of them together end a turn and begin the next, wherever they stand.
_CONTROL_PAIR = re.compile(rf"(?:{_CONTROL})[ \t]*(?:{_CONTROL})")
# <s> is HTML too, where a closing tag follows on the line: <s>old price</s>.
_BEGIN = re.compile(r"\A\s*<s>(?![^\n]*</s>[^\n]*[^\s\n])|<s>\s*\[INST\]|</s>\s*<s>")
_END = re.compile(r"</s>")
_HEADING = re.compile(
    r"^[ \t]*#{2,3} ?(?:(?:Instruction|Response|Human|Assistant|User|System|Prompt|Completion) ?:|"
    r"(?:Instruction|Response)[ \t]*$)",
    re.MULTILINE,
)
# Alpaca's template has ### Input: too, which problem sets have as well.
_INPUT_HEADING = re.compile(r"^[ \t]*### Input:[ \t]*$", re.MULTILINE)
_PREAMBLE = re.compile(
    r"Below is an instruction that describes a task(?:, paired with an input that provides further context)?\.|"
    r"A chat between a curious (?:user|human) and an artificial intelligence assistant\."
)
_TURN_OF_USER = re.compile(r"^(?:\*\*)?(?:Human|USER|User) ?:", re.MULTILINE)
_TURN_OF_ASSISTANT = re.compile(r"^(?:\*\*)?(?:Assistant|ASSISTANT|GPT|AI|Bot) ?:", re.MULTILINE)
_OPENING_TURN = re.compile(r"\A\s*(?:Assistant|ASSISTANT|USER|GPT) ?:")
# Someone speaks, which a list of kinds (Human: two legs) does not.
_SPEAKING_HUMAN = re.compile(r"^(?:Human|USER) ?:(?=[^\n]*(?:\?|\b(?:I|you|your|my|me|please|Please)\b))", re.MULTILINE)
_TURN_MARK = re.compile(r"\b(?:Human|Assistant|USER|ASSISTANT|User|GPT|AI|Bot) ?:")
# Vicuna's turns stand on one line.
_TURNS_OF_ONE_LINE = re.compile(r"^USER: [^\n]* ASSISTANT:", re.MULTILINE)
_OPEN_END = re.compile(r"\n(?:Assistant|ASSISTANT) ?:\s*\Z")
_ABOUT_DIALOGUES = re.compile(
    r"(?i)\b(?:dialog\w*|conversation\w*|chat\w*|interview\w*|transcript\w*|role-?play\w*|exchange|bots?|assistants?|"
    r"intents?|screenplay|skit)\b"
)
# Words for what a mark is; how far from it they are looked for.
_ABOUT_MARKS = re.compile(
    r"(?i)\b(?:(?:sub)?tokens?|token[iy][sz]\w*|tags?|templates?|chatml|markers?|delimiters?|html|markup|xml|separators?)\b"
)
_NEAR_CHARACTERS = 40
_ABOUT_PROMPTS = re.compile(
    rf"{_ABOUT_MARKS.pattern}|\b(?:prompts?|format\w*|llama\w*|mistral|llms?|language models?|fine-?tun\w*)\b", re.I
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_OPENING = tuple("\"'“‘«(")
_CLOSING = tuple("\"'”’»)")


def find_leftover(texts: RowTexts) -> tuple[str, int] | None:
    """Find the first mark of a template in a row: the text that has it and where in it; None: there is none."""
    for place, text in enumerate((texts.prompt, *texts.tails)):
        if not (_ANY.search(text) or "Below is an" in text or "A chat between" in text):
            continue
        # As long as before, so that places stay those of the text.
        plain = _CODE.sub(lambda found: " " * len(found.group()), text)
        is_answer = place > 0 and bool(texts.last_asked)
        found = _find_mark(plain)
        if found is None and is_answer and not _ABOUT_PROMPTS.search(texts.last_asked):
            found = _find_within(plain)
        if found is None and texts.last_asked and not _ABOUT_DIALOGUES.search(_TURN_MARK.sub("", texts.last_asked)):
            found = _find_turn(plain, is_answer=is_answer)
        if found is not None:
            return text, found
    return None


def _find_mark(text: str) -> int | None:
    for pattern in (_CONTROL_PAIR, _CONTROL_AT_EDGE, _BEGIN, _HEADING, _PREAMBLE):
        for found in pattern.finditer(text):
            if not _is_spoken_of(text, found):
                return found.start() + len(found.group()) - len(found.group().lstrip())
    if "### Input:" in text and ("### Output" in text or "### Response" in text):
        inner = _INPUT_HEADING.search(text)
        return inner.start() if inner else None
    ends = text.rstrip()
    line = ends[ends.rfind("\n") + 1 :]
    if ends.endswith("</s>") and "<s>" not in line and not _ABOUT_MARKS.search(line[-_NEAR_CHARACTERS:]):
        return len(ends) - len("</s>")
    return None


def _find_within(text: str) -> int | None:
    for pattern in (_CONTROL_ANYWHERE, _END):
        for found in pattern.finditer(text):
            if not _is_spoken_of(text, found) and (pattern is _CONTROL_ANYWHERE or "<s>" not in text):
                return found.start()
    return None


def _is_spoken_of(text: str, found: re.Match[str]) -> bool:
    """Whether a line names what a mark is, or quotes it."""
    start, end = found.span()
    first, last = text.rfind("\n", 0, start + 1) + 1, text.find("\n", end)
    before, behind = text[first:start], text[end : last if last >= 0 else len(text)]
    before, behind = before[-_NEAR_CHARACTERS:], behind[:_NEAR_CHARACTERS]
    if before.rstrip()[-1:] in _OPENING and behind.lstrip()[:1] in _CLOSING and before.strip() and behind.strip():
        return True
    return bool(_ABOUT_MARKS.search(before) or _ABOUT_MARKS.search(behind))


def _find_turn(text: str, *, is_answer: bool) -> int | None:
    user, assistant = _TURN_OF_USER.search(text), _TURN_OF_ASSISTANT.search(text)
    if user and assistant:
        return min(user.start(), assistant.start())
    patterns = (_OPENING_TURN, _SPEAKING_HUMAN, _TURNS_OF_ONE_LINE) if is_answer else (_OPEN_END, _TURNS_OF_ONE_LINE)
    return next((found.start() for pattern in patterns if (found := pattern.search(text))), None)
