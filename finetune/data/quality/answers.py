"""Answers that teach nothing, or another assistant's manners: empty, placeholders, refusals, boilerplate.

Each check takes one answer and what was asked, and says where in the answer the fault begins. The lists are of
English phrases; where they come from stands beside them.
"""

import re
import unicodedata

__all__ = ["find_boilerplate", "find_refusal", "is_empty", "is_too_short"]

_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
# Unicode's classes of what cannot be seen, and blanks that it counts as letters.
_UNSEEN_CLASSES = ("Z", "Cc", "Cf", "Cn", "Co", "Cs")
_BLANKS = "\u2800\u3164\u115f\u1160\uffa0"
# Signs that can be a whole answer: of mathematics and money, and pictures.
_SPEAKING_CLASSES = ("Sm", "Sc", "So")

# Whole answers that stand for one. `<noinput>`, `<nooutput>` and N/A are of Alpaca (the faults that the
# AlpacaDataCleaned project lists); the others are what forms, exports and drafts leave.
_PLACEHOLDERS = frozenset(
    {
        *("noinput", "nooutput", "no input", "no output", "no response", "no data", "todo", "tbd", "tba", "fixme"),
        *("xxx", "placeholder", "asdf", "lorem ipsum", "lorem ipsum dolor sit amet", "object object", "&nbsp;", "br"),
        *("to be added", "to be done", "to be determined", "to be filled in", "coming soon", "answer here"),
        *("your answer here", "your response here", "your text here", "insert answer here", "insert response here"),
        *("insert text here", "insert your answer here", "add answer here", "output here", "response here"),
        *("not available", "not applicable", "no answer provided", "no output provided", "no input provided"),
    }
)
# The same, but true answers where the question names them.
_POSSIBLE_ANSWERS = frozenset({"n/a", "n.a", "#n/a", "nan", "null", "undefined", "no answer"})
_ASKS_FOR_VALUE = re.compile(r"(?i)\d|\b(?:divi\w+|slope|limit|function|logarithm|tangent|variable|code|javascript)\b")
# A word for what should stand there, in brackets of any kind.
_IN_BRACKETS = re.compile(
    r"(?i)\s*[<\[{(]{1,2}\s*(?:your |the |insert |add |enter )*(?:answer|response|output|text|content|completion|value)"
    r"(?: here| goes here)?\s*[>\]})]{1,2}\s*\.?\s*"
)
_AROUND = "<>[]{}()\"'`*_.!:;-#/~ \n\t"
# So long an answer may be one sign that was asked for.
_MAX_SIGNS = 2
# What code prints where there is nothing, and signs that a program knows; dots, dashes and question marks, which fill
# a gap as well, are answers only where signs or what is printed are asked for.
_PAIRS = frozenset({"{}", "[]", "()", "<>", "''", '""', "``", "[[]]", "{{}}", "[{}]"})
_FILLERS = frozenset(".,-_*!?~\u2013\u2014")
_ABOUT_SIGNS = re.compile(
    r"(?i)\b(?:punctuat\w*|symbols?|signs?|operators?|emoj\w*|emoticons?|characters?|marks?|ascii|morse|smileys?|dots?)\b"
)
_ASKS_FOR_SIGN = re.compile(
    r"(?i)\b(?:print(?:s|ed)?|outputs?|separat(?:or|e[sd]?)|delimit\w+|wildcards?|(?:which|what) (?:key|button)|"
    r"keyboard|regex\w*)\b"
)
_ABOUT_CODE = re.compile(
    r"(?i)\b(?:which|stands? for|codes?|coding|functions?|commands?|scripts?|python|java\w*|typescript|c\+\+|c#|rust|"
    r"golang|perl|php|ruby|sql|bash|shell|unix|linux|html|css|json|yaml|xml|reg(?:ular )?ex\w*|evaluat\w+|returns?|"
    r"prints?|outputs?|dict(?:s|ionary|ionaries)?|tuples?|arrays?|query|directory|path|url|keyboard|separat\w+|"
    r"delimit\w+|brackets?|parenthes\w+|braces?|slash\w*|per ?cent|empty)\b|[(\[{][)\]}]|```"
)

# What an assistant calls itself.
_AI = (
    r"(?:(?:\w+[- ]){0,2}?(?:AI|A\.I\.|artificial intelligence|language model|LLM|chatbot|virtual assistant|"
    r"digital assistant|machine learning model|computer program)\b(?:-\w+)?(?: (?:assistant|model|system|bot|tool)\b)?)"
)
_APOLOGY = (
    r"(?:i(?:'m| am)(?: (?:very|so|really|truly|deeply|terribly))? (?:sorry|afraid)|(?:very |so )?sorry|"
    r"we(?:'re| are) sorry|(?:my |our )?(?:sincere )?apologies|(?:i|we) (?:must |do |sincerely )*apologi[sz]e|"
    r"i regret(?: to (?:inform|tell) you)?(?: that)?|unfortunately|regrettably)\b"
)
_CANNOT = (
    r"(?:can(?:not|'t| not)|could(?:n't| not)|(?:won't|will not)(?: be able to)?|do(?:n't| not) think (?:that )?i can|"
    r"(?:would|'d) (?:prefer|rather) not(?: to)?|(?:'m| am)(?: \w+)? (?:unable|not able|incapable)(?: to)?|"
    r"(?:'m| am) not (?:capable|allowed|permitted|programmed|designed|authori[sz]ed|equipped|comfortable|in a position)"
    r"(?: of| to| with)?|do(?:n't| not) (?:feel comfortable|have the (?:\w+ )?(?:ability|abilities|capability|capacity)"
    r"(?: of| to)?)|must (?:\w+ )?(?:decline|refuse)(?: to)?|(?:have|need) to decline(?: to)?|refuse to|decline to)"
)
# What is declined: an assistant's doings. "I cannot help but smile" is none.
_DOING = (
    r"(?:help(?:ing)?\b(?! but| falling| myself)|assist|fulfil|comply|provid|answer(?:ing)?\b|generat|creat|writ|"
    r"produc|complet|engag|discuss|respond|offer|support|promot|shar|do (?:that|this|so)\b|process|perform|access|"
    r"continue\b|participat|recommend (?:any|that)|"
    r"giv(?:e|ing) (?:you|out|advice|any|medical|legal|instructions|information)|"
    r"advise|encourag|condone|facilitat|fulfill|translat|summari[sz]|identif|determin|browse|display|evaluat|assess|"
    r"tell you|teach|make|predict|proceed|with (?:that|this)|(?:this|that|your|the) request)"
)
# How it is softened.
_SOFTLY = r"(?:(?:in good conscience|directly|possibly|just|really|simply|currently|legally|ethically|actually) )?"
# What may stand before a refusal.
_COURTESY = re.compile(
    r"^(?:(?:no|hello|hi|hey(?: there)?|sure|well)[,.!]+ |(?:thank you|thanks|i (?:truly |really )?(?:appreciate|"
    r"understand)|(?:that(?:'s| is) )?(?:an? )?(?:great|good|interesting|excellent) question)[^.!\n]{0,80}[.!,] "
    r"(?:but |however,? )?)",
    re.I,
)
# An apology alone is polite; one with what cannot be done, said of oneself, declines.
_APOLOGY_AND_DOING = re.compile(rf"^{_APOLOGY}[^\n.?]{{0,120}}?\bI ?{_CANNOT} ?{_SOFTLY}{_DOING}", re.I)
_PLAIN = re.compile(
    rf"^(?:(?:as|i(?:'m| am)) an? {_AI}[^\n.]{{0,100}}?\b)?(?:and |but |so )?(?:i|i, as an? {_AI},) ?{_CANNOT} "
    rf"?{_SOFTLY}{_DOING}",
    re.I,
)
_APOLOGY_OF_AI = re.compile(
    rf"^(?:{_APOLOGY}[^\n.]{{0,40}}?)?\b(?:as|i(?:'m| am)) an? {_AI}[^\n.]{{0,160}}?\bI ?{_CANNOT}", re.I
)
_LACK_AND_DOING = re.compile(
    rf"^I do(?:n't| not) have (?:access|the (?:ability|capability|means|information)|real-time|up-to-date)"
    rf"[^.\n]{{0,100}}?\bI ?{_CANNOT} ?{_SOFTLY}{_DOING}",
    re.I,
)
_ASSISTANT = re.compile(rf"^as an? (?:\w+ ){{0,3}}assistant, I ?{_CANNOT} ?{_SOFTLY}{_DOING}", re.I)
_AGAINST = re.compile(
    rf"^(?:{_APOLOGY},? (?:but )?)?(?:your (?:request|question|prompt) (?:goes against|is against|violates|"
    r"conflicts with)|(?:that|this)(?:'s| is)? not something (?:that )?i(?: can|'m able)|"
    r"(?:that|this|it|this (?:request|question|topic|content))(?:'s| is| goes| would be| would not be| "
    r"wouldn't be)? ?(?:not )?(?:against my|violates my|(?:in)?appropriate for me|unethical for me)|"
    r"my (?:programming|guidelines) (?:prevents?|do(?:es)?(?:n't| not) allow|prohibits?|forbids?))",
    re.I,
)
# An apology with something that is missing; also what people write to each other.
_APOLOGY_AND_LACK = re.compile(
    rf"^{_APOLOGY}[^\n]{{0,40}}?\b(?:I ?{_CANNOT}|I (?:do(?:n't| not)|did(?:n't| not)) (?:have|see|know|find|"
    r"understand)|I (?:have no|lack|need (?:more|some|additional|further|the|you to))|you (?:did(?:n't| not)|"
    r"have(?:n't| not)|need to|must)|there (?:is(?:n't| not)? (?:no|any|an?)|are no|was no|isn't)|"
    r"no \w+ (?:was|is|were|has been) (?:provided|given)|could you please (?:provide|specify|clarify)|please provide)",
    re.I,
)
_WRITTEN_TO_PEOPLE = re.compile(
    r"(?i)\b(?:e-?mails?|letter|messages?|apolog\w+|reply|dialog(?:ue)?|conversation|customers?|role-?play|pretend|"
    r"script|invit\w+|declin\w+|refus\w+|reject\w*|excuse|complain\w*|chat|unable|sorry|can't|cannot|don't)\b"
)
# What was asked for: to say so where the answer is not in the text, or to turn other questions away.
_TOLD_TO_DECLINE = re.compile(
    r"(?i)(?:say|tell|answer|respond|reply|state)\b[^.\n]{0,40}(?:don't know|do not know|can(?:not|'t)|unable|not sure)"
    r"|only (?:answer|respond|help)|(?:un|ir)related|off-topic|politely (?:decline|refuse)"
)

# First-person statements of an assistant about itself. Sources: the filters of FastChat's and ShareGPT's
# `optional_clean.py`, of `WizardLM_alpaca_evol_instruct_70k_unfiltered`'s `wizardlm_clean.py` and of Airoboros,
# narrowed to first-person statements; `As of my last update`: open-instruct's `filter_cutoff_date.py`.
_BOILERPLATE = re.compile(
    rf"\b(?:as|being) an? {_AI}(?:(?: (?!I\b)[\w'-]+){{0,6}},)? (?:I\b|my\b|it is\b|it's\b|there\b|we\b|personal)|"
    rf"\bI(?:'m| am)(?: (?:just|only|merely|simply|actually))? an? {_AI}|"
    rf"\bI, as an? {_AI}|\bI (?:was|am|have been|'m|'ve been) (?:trained|developed|created|made|built) by OpenAI|"
    r"\bI(?:'m| am) (?:ChatGPT|GPT-\d|Claude|Bard|Assistant)\b|"
    r"\b(?:as of|up to|until|since) my (?:last|latest|most recent) (?:knowledge |training |data )*(?:update|cut-?off)|"
    r"\b(?:based on|from|in) my training data\b|"
    r"\bmy (?:knowledge|training)(?: data)? (?:cut-?off|ends|only goes|only extends|was last updated)|"
    r"\bI (?:do(?:n't| not)|cannot|can't) (?:have|possess|experience|hold|form) (?:any )?(?:personal|subjective|human) "
    r"(?:\w+,? (?:or|and) )?(?:opinions?|beliefs?|feelings?|emotions?|preferences?|consciousness)|"
    r"\bmy programming\b(?! (?:skills|class|course|homework|assignment|language|career|job|project|knowledge))|"
    r"^\s*Regenerate response\s*$",
    re.I | re.M,
)
# One of these stands in everything that the pattern finds.
_HINTS_OF_BOILERPLATE = (
    *(" ai", "a.i.", "artificial intelligence", "language model", " llm", "chatbot", "assistant", "learning model"),
    *("computer program", "openai", "chatgpt", "gpt-", "claude", "bard", "my last", "my latest", "my most recent"),
    *("my knowledge", "my training", "personal", "subjective", "human", "my programming", "regenerate response"),
)
_NAMES_AI = re.compile(
    r"(?i)\b(?:AIs?|artificial intelligence|robots?|chat ?bots?|bots?|language models?|LLMs?|assistants?|chatgpt|"
    r"gpt\S*|androids?|computers?|machines?)\b"
)
_SPEAKS_AS = re.compile(
    r"(?i)\b(?:you(?:'re| are)|are you|yourself|imagine|pretend|act as|roles?|role-?play|perspective|point of view|"
    r"dialog(?:ue)?|conversation|story|script|character|monologue|chat|interview)\b"
)
_ASKS_WHO = re.compile(
    r"(?i)\b(?:who|what) (?:exactly )?are you\b|\bwho (?:made|created|trained|built|developed) you|introduce yourself|"
    r"\byour name\b|\bare you (?:an? )?(?:ai|human|robot|real|bot|person|chatgpt|conscious|sentient)|about yourself"
)
_CURLY = str.maketrans("\u2018\u2019\u02bc", "'''")
_OPENING_QUOTES = "\"'“‘«`"
# How far into an answer a refusal is looked for.
_MAX_START = 400


def is_empty(answer: str) -> bool:
    """Whether an answer holds nothing that can be seen."""
    if _LETTER_OR_DIGIT.search(answer[:50]):
        return False
    return all(unicodedata.category(sign).startswith(_UNSEEN_CLASSES) or sign in _BLANKS for sign in answer)


def is_too_short(answer: str, asked: str) -> bool:
    """Whether an answer is a placeholder, or punctuation alone that was not asked for; "7" and "True" are answers."""
    if len(answer) > 200:
        return not _LETTER_OR_DIGIT.search(answer) and not _speaks_in_signs(answer)
    bare = " ".join(answer.casefold().split()).strip(_AROUND)
    if bare in _PLACEHOLDERS or _IN_BRACKETS.fullmatch(answer):
        return True
    if bare in _POSSIBLE_ANSWERS:
        return bare not in asked.casefold() and not (bare == "undefined" and _ASKS_FOR_VALUE.search(asked))
    if _LETTER_OR_DIGIT.search(answer):
        return False
    return not _speaks_in_signs(answer) and not _is_asked_for("".join(answer.split()).strip("`"), asked)


def _is_asked_for(signs: str, asked: str) -> bool:
    """Whether an answer of signs alone is what a prompt about signs or code wants."""
    if signs in _PAIRS:
        return _ABOUT_SIGNS.search(asked) is not None or _ABOUT_CODE.search(asked) is not None
    if len(signs) > _MAX_SIGNS:
        return False
    if _ABOUT_SIGNS.search(asked) or _ASKS_FOR_SIGN.search(asked):
        return True
    return signs.isascii() and not _FILLERS.issuperset(signs) and _ABOUT_CODE.search(asked) is not None


def _speaks_in_signs(answer: str) -> bool:
    return any(unicodedata.category(sign) in _SPEAKING_CLASSES for sign in answer)


def find_refusal(answer: str, asked: str) -> int | None:
    """Find where an answer declines what was asked: at its start, of itself; None: it does not."""
    start = answer[:_MAX_START].translate(_CURLY)
    lead = len(start) - len(start.lstrip())
    start = _COURTESY.sub("", start[lead:])
    for pattern in (_APOLOGY_OF_AI, _APOLOGY_AND_DOING, _PLAIN, _LACK_AND_DOING, _ASSISTANT, _AGAINST):
        if pattern.match(start):
            return None if _TOLD_TO_DECLINE.search(asked) else lead
    if _APOLOGY_AND_LACK.match(start) and not (_WRITTEN_TO_PEOPLE.search(asked) or _TOLD_TO_DECLINE.search(asked)):
        return lead
    return None


def find_boilerplate(answer: str, asked: str) -> int | None:
    """Find where an answer speaks of itself as an assistant does, unless it was asked or plays one; None: nowhere."""
    # The pattern costs 130 µs an answer, these 2.
    lower = answer.lower()
    if not any(hint in lower for hint in _HINTS_OF_BOILERPLATE):
        return None
    for found in _BOILERPLATE.finditer(answer.translate(_CURLY)):
        is_quoted = found.start() > 0 and answer[found.start() - 1] in _OPENING_QUOTES
        if is_quoted or _ASKS_WHO.search(asked) or (_NAMES_AI.search(asked) and _SPEAKS_AS.search(asked)):
            continue
        return found.start()
    return None
