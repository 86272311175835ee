"""Answers of the model being trained: scored before and after a run, shown during it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from finetune.data.examples import (
    Conversation,
    Message,
    Origin,
    from_json,
    judged_from_json,
    preference_from_json,
)
from finetune.data.formats import Kind
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.errors import DataError
from finetune.model.generation import generate_answers
from finetune.objectives.scores import METRICS, extract_answer
from finetune.recipe.schema import EvaluationSettings

__all__ = [
    "Answered",
    "Answerer",
    "Question",
    "SampleAnswers",
    "build_questions",
    "build_samples",
    "mean_score",
    "render_answers",
]

_SHOWN_CHARACTERS = 72


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt whose right answer is known: `asked` to be read by people, `prompt_ids` by the model."""

    asked: str
    prompt_ids: list[int]
    reference: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the answer the model gave, its length in tokens and its score, 0 to 1."""

    question: Question
    answer: str
    num_tokens: int
    score: float


def build_questions(loaded: LoadedExamples, renderer: Renderer) -> list[Question]:
    """Build questions from conversations: everything before the last answer is asked, the answer is the reference.

    Raises:
        DataError: a conversation that does not end with words of the assistant's.
    """
    questions = []
    for row in loaded.dataset:
        place = Origin(row["source"], row["row"])
        question = _to_question(_read_conversation("conversation", row["example"], place), renderer)
        if question is None:
            raise DataError(f"{place}: a question needs its answer, in words, as the last turn.")
        questions.append(question)
    return questions


def build_samples(loaded: LoadedExamples, renderer: Renderer, count: int, kind: Kind) -> list[Question]:
    """Build questions from the first `count` rows that end with an answer; of a pair it is the chosen one."""
    found = (_to_question(_read_conversation(kind, row["example"]), renderer) for row in loaded.dataset)
    return list(islice((question for question in found if question is not None), count))


def _read_conversation(kind: Kind, text: str, place: Origin | None = None) -> Conversation | None:
    """Read the conversation in a row; None where it is plain text, or an answer that was judged bad."""
    if kind == "preference":
        return preference_from_json(text, place).chosen
    if kind == "judged":
        judged = judged_from_json(text, place)
        return judged.conversation if judged.desirable else None
    example = from_json(text, place)
    return example if isinstance(example, Conversation) else None


def _to_question(example: Conversation | None, renderer: Renderer) -> Question | None:
    if example is None:
        return None
    *asked, answer = example.messages
    if answer.role != "assistant" or not answer.content.strip() or not asked:
        return None
    (prompt,) = renderer.render_prompts([replace(example, messages=tuple(asked))])
    return Question(_to_text(asked), prompt.input_ids, answer.content)


def _to_text(messages: Sequence[Message]) -> str:
    return "\n".join("\n".join(filter(None, (message.content, message.input))) for message in messages)


def mean_score(answered: Sequence[Answered]) -> float:
    """Mean of the scores, 0 to 1."""
    return sum(one.score for one in answered) / len(answered)


@dataclass(frozen=True, slots=True)
class Answerer:
    """Answers questions greedily with whatever weights the model holds at the moment."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]
    settings: EvaluationSettings

    def answer(self, questions: Sequence[Question]) -> list[Answered]:
        """Answer in the order asked and score each against its reference."""
        if not questions:  # also of a reward model, which gives no answers
            return []
        metric, pattern = METRICS[self.settings.metric], self.settings.answer_pattern
        answers = generate_answers(
            self.model,
            self.tokenizer,
            [question.prompt_ids for question in questions],
            stop_ids=self.stop_ids,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.batch_size,
        )
        lengths = [len(ids) for ids in self.tokenizer(answers, add_special_tokens=False)["input_ids"]]
        return [
            Answered(question, answer, length, metric(extract_answer(answer, pattern), question.reference))
            for question, answer, length in zip(questions, answers, lengths, strict=True)
        ]


class SampleAnswers(TrainerCallback):
    """Answers the same few questions at every evaluation during training and hands them to `write(step, answered)`."""

    def __init__(
        self, answerer: Answerer, questions: Sequence[Question], write: Callable[[int, Sequence[Answered]], None]
    ) -> None:
        self._answerer = answerer
        self._questions = questions
        self._write = write

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Answer on the main process alone; the others wait at their next collective step."""
        if state.is_world_process_zero and self._questions:
            self._write(state.global_step, self._answerer.answer(self._questions))


def render_answers(before: Sequence[Answered], after: Sequence[Answered]) -> list[str]:
    """Render what was asked and how it was answered at the start and at the end, four lines each for a console."""
    earlier = {one.question.asked: one.answer for one in before}
    return [
        f"asked   {_to_line(one.question.asked)}\n"
        f"before  {_to_line(earlier.get(one.question.asked, '(measured before this process)'))}\n"
        f"after   {_to_line(one.answer)}\n"
        f"right   {_to_line(one.question.reference)}\n"
        for one in after
    ]


def _to_line(text: str) -> str:
    """The text on one line of a console, its line breaks shown and its end cut; samples.md has all of it."""
    line = " / ".join(filter(None, (part.strip() for part in text.splitlines())))
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"
