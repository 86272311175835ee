"""A conversation with tiny real models: what was said is kept, and goes on when another one answers."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune.conversing.talking import Conversation
from finetune.errors import DataError, RecipeError
from finetune.model.loading import Speaker, load_for_inference
from finetune.model.several import OneSpeaker
from tests.model.saved_runs import write_base, write_run

QUESTION = "What colour is a lemon?"


@dataclass
class Two:
    """Two speakers by name."""

    speakers: dict[str, Speaker]
    active: str

    @property
    def names(self) -> list[str]:
        return list(self.speakers)

    @property
    def speaker(self) -> Speaker:
        return self.speakers[self.active]

    def use(self, name: str) -> Speaker:
        self.active = name
        return self.speaker


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("conversing")
    return write_run(place / "run", write_base(place / "base"), template="chatml", quantization="none")


@pytest.fixture(scope="module")
def tuned(run) -> Speaker:
    return load_for_inference(str(run), device="cpu")


@pytest.fixture(scope="module")
def untouched(run) -> Speaker:
    """The base, which brings no template."""
    return load_for_inference(str(run.with_name("base")), quantization="none", device="cpu")


def begin(speaker: Speaker, **settings) -> Conversation:
    return Conversation(OneSpeaker("run", speaker), **({"max_new_tokens": 6} | settings))


def test_a_second_turn_is_answered_in_the_light_of_the_first_until_that_is_forgotten(tuned, capsys):
    conversation = begin(tuned)
    first = conversation.reply(QUESTION)
    assert conversation.reply(QUESTION) != first
    conversation.commands["/reset"]("")
    assert conversation.reply(QUESTION) == first
    assert capsys.readouterr().err == f"{tuned.description}\n(forgotten)\n"


def test_an_answer_is_streamed_as_it_is_returned_and_hidden_it_is_the_same(tuned, capsys):
    answer = begin(tuned).reply(QUESTION)
    assert capsys.readouterr().out == f"{answer}\n"
    assert begin(tuned, shown=False).reply(QUESTION) == answer
    assert capsys.readouterr().out == ""


def test_a_system_message_and_the_text_that_is_asked_about_change_the_answer(tuned):
    plain = begin(tuned).reply(QUESTION)
    assert begin(tuned, system="Answer in capital letters.").reply(QUESTION) != plain
    assert begin(tuned).reply(QUESTION, "It is ripe.") != plain


def test_another_speaker_goes_on_with_what_was_said_in_its_own_template(tuned, untouched, capsys):
    conversation = Conversation(Two({"run": tuned, "base": untouched}, "run"), max_new_tokens=6)
    conversation.reply(QUESTION)
    conversation.commands["/use"]("base")
    told = capsys.readouterr().err.splitlines()
    assert told == [
        tuned.description,
        "No chat template was saved with this tokenizer; asking in Alpaca's form.",
        untouched.description,
    ]
    in_the_light = conversation.reply(QUESTION)
    conversation.commands["/reset"]("")
    alone = conversation.reply(QUESTION)
    assert in_the_light != alone
    assert alone == begin(untouched).reply(QUESTION)
    capsys.readouterr()
    conversation.commands["/adapters"]("")
    assert capsys.readouterr().err == "  run\n* base\n"


def test_an_unknown_speaker_leaves_the_conversation_as_it_was(tuned):
    conversation = begin(tuned)
    first = conversation.reply(QUESTION)
    with pytest.raises(RecipeError, match="run answers alone"):
        conversation.commands["/use"]("law")
    conversation.commands["/reset"]("")
    assert conversation.reply(QUESTION) == first


def test_a_turn_longer_than_the_room_is_refused_and_not_kept(tuned):
    conversation = begin(tuned)
    with pytest.raises(DataError, match="room for 250"):
        conversation.reply("word " * 500)
    assert conversation.reply(QUESTION) == begin(tuned).reply(QUESTION)


def test_answers_that_leave_no_room_for_a_prompt_are_refused_before_anyone_is_introduced(tuned, capsys):
    with pytest.raises(RecipeError, match="positions for 256 tokens"):
        begin(tuned, max_new_tokens=256)
    assert capsys.readouterr().err == ""
