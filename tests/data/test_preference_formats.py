"""Each format of preferences and verdicts on rows small enough to check by eye, its faults, and the real sets."""

import json
from pathlib import Path

import pytest

from finetune.data.examples import (
    Conversation,
    Judged,
    Message,
    Origin,
    Preference,
    RowError,
    from_json,
    judged_from_json,
    preference_from_json,
    to_json,
)
from finetune.data.formats import Kind, find_format, to_examples
from finetune.data.sources import LoadedExamples, load_examples, split_examples
from finetune.errors import DataError, RecipeError
from finetune.recipe.schema import SourceSettings

HERE = Origin("rows.jsonl", 7)
READERS = {Preference: preference_from_json, Judged: judged_from_json, Conversation: from_json}
USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Hi."), ("assistant", "Yes."), ("assistant", "No."))
)
SYSTEM = {"role": "system", "content": "Be brief."}


def convert(row: dict, format: str, kind: Kind = "preference", **columns: str) -> list:
    examples = list(to_examples(row, format, columns, HERE, kind))
    # Whatever a row becomes is the same after it lay on the disk.
    assert [READERS[type(example)](to_json(example), HERE) for example in examples] == examples
    return examples


def pair(row: dict, format: str) -> tuple[list[tuple], str, str]:
    """The shared prompt as (role, content, weight), and the contents of the two answers."""
    (preference,) = convert(row, format)
    *prompt, chosen = preference.chosen.messages
    *same, rejected = preference.rejected.messages
    assert prompt == same
    assert (chosen.role, rejected.role) == ("assistant", "assistant")
    assert (chosen.weight, rejected.weight) == (None, None)
    return [(message.role, message.content, message.weight) for message in prompt], chosen.content, rejected.content


def hh(*turns: str) -> str:
    speakers = ["Human", "Assistant"] * len(turns)
    return "".join(f"\n\n{speaker}: {text}" for speaker, text in zip(speakers, turns, strict=False))


ROWS = {
    "preference": {"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."},
    "openai_preference": {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    "sharegpt_preference": {
        "conversations": [{"from": "human", "value": "Hi."}],
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "orca": {"system": "", "question": "Hi.", "chosen": "Yes.", "rejected": "No."},
    "dialogues": {"chosen": hh("Hi.", "Yes."), "rejected": hh("Hi.", "No.")},
    "ranking": {"prompt": "Hi.", "answers": ["Yes.", "No."]},
}
JUDGED_ROWS = {
    "judged": {"prompt": "Hi.", "completion": "Yes.", "label": True},
    "judged_messages": {"messages": [USER, GOOD], "label": True},
}


@pytest.mark.parametrize("format", ROWS)
def test_the_same_pair_in_every_format_is_one_example_and_auto_knows_the_format(format):
    assert pair(ROWS[format], format) == ([("user", "Hi.", None)], "Yes.", "No.")
    assert find_format(ROWS[format], "preference") == format


@pytest.mark.parametrize("format", JUDGED_ROWS)
def test_the_same_verdict_in_both_formats_is_one_example_and_auto_knows_the_format(format):
    (judged,) = convert(JUDGED_ROWS[format], format, "judged")
    assert judged.conversation.messages == (Message("user", "Hi."), Message("assistant", "Yes."))
    assert judged.desirable
    assert find_format(JUDGED_ROWS[format], "judged") == format


@pytest.mark.parametrize("format", ROWS)
def test_verdicts_are_read_from_pairs_too_the_chosen_answer_desirable(format):
    good, bad = convert(ROWS[format], format, "judged")
    assert [good.conversation.messages[-1].content, bad.conversation.messages[-1].content] == ["Yes.", "No."]
    assert [good.desirable, bad.desirable] == [True, False]
    assert find_format(ROWS[format], "judged") == format


def test_messages_may_be_the_answers_alone_or_whole_conversations_that_repeat_the_prompt():
    prompt = [SYSTEM, USER, GOOD, USER]
    expected = (
        [("system", "Be brief.", None), ("user", "Hi.", None), ("assistant", "Yes.", 0), ("user", "Hi.", None)],
        "Yes.",
        "No.",
    )
    assert pair({"prompt": prompt, "chosen": [GOOD], "rejected": [BAD]}, "preference") == expected
    whole = {"prompt": prompt, "chosen": [*prompt, GOOD], "rejected": [*prompt, BAD]}
    assert pair(whole, "preference") == expected
    assert pair({"chosen": whole["chosen"], "rejected": whole["rejected"]}, "dialogues") == expected


def test_a_prompt_of_text_agrees_with_conversations_that_repeat_it_and_their_system_message_is_kept():
    row = {"prompt": "Hi.", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}
    assert pair(row, "preference") == ([("system", "Be brief.", None), ("user", "Hi.", None)], "Yes.", "No.")


def test_a_completion_of_several_turns_is_trained_whole():
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    result = {"role": "tool", "content": "1"}
    (preference,) = convert({"prompt": [USER], "chosen": [call, result, GOOD], "rejected": [BAD]}, "preference")
    assert [message.weight for message in preference.chosen.messages] == [None, None, None, None]
    assert len(preference.rejected.messages) == 2


def test_openais_input_brings_its_tools():
    tool = {"type": "function", "function": {"name": "f"}}
    row = ROWS["openai_preference"] | {"input": {"messages": [USER], "tools": [tool], "parallel_tool_calls": True}}
    (preference,) = convert(row, "openai_preference")
    assert preference.chosen.tools == preference.rejected.tools == (tool,)


def test_orcas_system_stands_first():
    assert pair(ROWS["orca"] | {"system": "Be brief."}, "orca")[0][0] == ("system", "Be brief.", None)


def test_a_dialogue_in_text_is_parted_at_its_speakers_and_kept_to_the_letter():
    row = {
        "chosen": hh("Hi.\n\nTwo lines", " Well", "So?", "Yes. \n"),
        "rejected": hh("Hi.\n\nTwo lines", " Well", "So?", "No."),
    }
    prompt = [("user", "Hi.\n\nTwo lines", None), ("assistant", " Well", 0), ("user", "So?", None)]
    assert pair(row, "dialogues") == (prompt, "Yes. \n", "No.")


def test_a_mark_of_the_speaker_inside_his_own_turn_is_part_of_what_he_says():
    start = hh("Hi.", "A joke:\n\nAssistant: ha", "More.")
    prompt, *_ = pair({"chosen": f"{start}\n\nAssistant: Yes.", "rejected": f"{start}\n\nAssistant: No."}, "dialogues")
    assert prompt[1] == ("assistant", "A joke:\n\nAssistant: ha", 0)


@pytest.mark.parametrize(
    ("columns", "pairs"),
    [
        ({}, ["ab", "ac", "bc"]),
        ({"scores": [1, 9.5, 5]}, ["bc", "ba", "ca"]),
        ({"ranks": [2, 1, 2]}, ["ba", "bc"]),
        ({"scores": "[1, 1, 2]"}, ["ca", "cb"]),
    ],
)
def test_a_ranking_gives_every_pair_of_a_better_and_a_worse_answer_and_ties_give_none(columns, pairs):
    found = convert({"prompt": "Hi.", "answers": ["a", "b", "c"], **columns}, "ranking")
    assert [one.chosen.messages[-1].content + one.rejected.messages[-1].content for one in found] == pairs


def test_only_the_last_answer_of_judged_messages_is_trained():
    (judged,) = convert({"messages": [USER, BAD, USER, GOOD], "label": False}, "judged_messages", "judged")
    assert [message.weight for message in judged.conversation.messages] == [None, 0, None, None]
    assert not judged.desirable


@pytest.mark.parametrize(("label", "desirable"), [(True, True), (0, False), ("True", True), ("false", False)])
def test_a_label_may_be_a_number_or_a_word_as_in_csv(label, desirable):
    (judged,) = convert(JUDGED_ROWS["judged"] | {"label": label}, "judged", "judged")
    assert judged.desirable is desirable


@pytest.mark.parametrize(
    ("row", "format", "roles"),
    [
        ({"prompt": "Hi."}, "prompt", ["user"]),
        ({"prompt": "Hi.", "answer": "Yes.", "system": "Be brief."}, "prompt", ["system", "user", "assistant"]),
        ({"prompt": [USER, GOOD, USER], "answer": None}, "prompt", ["user", "assistant", "user"]),
        ({"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."}, "prompt", ["user"]),
        ({"messages": [USER], "label": True}, "messages", ["user"]),
        ({"messages": [USER, GOOD]}, "messages", ["user", "assistant"]),
        ({"instruction": "Hi.", "output": "Yes."}, "alpaca", ["user", "assistant"]),
        ({"prompt": "Hi.", "completion": "Yes."}, "prompt_completion", ["user", "assistant"]),
    ],
)
def test_prompts_are_read_from_every_conversation_and_need_no_answer(row, format, roles):
    assert find_format(row, "prompt") == format
    (conversation,) = convert(row, format, "prompt")
    assert [message.role for message in conversation.messages] == roles


FAULTS = [
    ("preference", {"chosen": "No."}, "chosen equals rejected"),
    ("preference", {"chosen": " \n"}, "empty chosen"),
    ("preference", {"rejected": ""}, "empty rejected"),
    ("preference", {"rejected": []}, "empty rejected"),
    ("preference", {"chosen": [GOOD, USER]}, "no answer: `chosen` does not end with the assistant's turn"),
    ("preference", {"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "prompts differ"),
    ("preference", {"prompt": "Ho.", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "prompts differ"),
    ("preference", {"prompt": ""}, "`prompt` is empty"),
    ("preference", {"prompt": [USER, GOOD]}, "two assistant messages in a row"),
    ("preference", {"chosen": 5}, "`chosen` is not a list"),
    ("openai_preference", {"preferred_output": [BAD]}, "chosen equals rejected"),
    ("openai_preference", {"preferred_output": [GOOD | {"content": None}]}, "empty chosen"),
    ("openai_preference", {"non_preferred_output": "No."}, "`non_preferred_output` holds broken JSON"),
    ("openai_preference", {"input": {"prompt": "Hi."}}, "`input` holds no `messages`"),
    ("sharegpt_preference", {"chosen": {"from": "gpt", "value": ""}}, "empty chosen"),
    ("sharegpt_preference", {"chosen": {"from": "bing", "value": "x"}}, "unknown role"),
    ("orca", {"question": " "}, "`question` is empty"),
    ("dialogues", {"chosen": hh("Ho.", "Yes.")}, "prompts differ"),
    ("dialogues", {"chosen": hh("Hi.", "Ha.", "So?", "Yes.")}, "prompts differ"),
    ("dialogues", {"rejected": hh("Hi.", "")}, "empty rejected"),
    ("dialogues", {"chosen": hh("Hi.", "Yes.", "So?")}, "no answer: `chosen` does not end with the assistant's turn"),
    ("dialogues", {"chosen": "Yes."}, "`chosen` does not begin with `Human:`"),
    ("dialogues", {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD]}, "prompts differ"),
    ("ranking", {"answers": ["Yes."]}, "fewer than two answers to rank"),
    ("ranking", {"answers": ["Yes.", "Yes."]}, "chosen equals rejected"),
    ("ranking", {"scores": [1, 1]}, "all answers are ranked alike"),
    ("ranking", {"scores": [1]}, "another number of `scores` than of answers"),
    ("ranking", {"ranks": [1, "2"]}, "`ranks` holds something that is not a number"),
    ("ranking", {"ranks": [1, 2], "scores": [2, 1]}, "both `scores` and `ranks`"),
    ("judged", {"label": "good"}, "`label` is neither true nor false"),
    ("judged", {"completion": ""}, "empty completion"),
    ("judged_messages", {"messages": [USER]}, "no answer: `messages` does not end with the assistant's turn"),
]


@pytest.mark.parametrize(("format", "change", "reason"), FAULTS)
def test_a_pair_that_cannot_teach_stops_the_run_at_its_line_or_is_counted(format, change, reason, tmp_path):
    good = (ROWS | JUDGED_ROWS)[format]
    kind: Kind = "preference" if format in ROWS else "judged"
    path = write(tmp_path, [good, good | change, good])
    with pytest.raises(DataError, match=rf"rows.jsonl:2: {reason}"):
        load(path, kind, on_bad_rows="error", format=format)
    source = load(path, kind, format=format).report["sources"][0]
    assert source["bad_reasons"] == {reason: {"rows": 1, "first": [f"{path}:2"]}}
    assert source["rows"] == 2


def test_a_prompt_without_a_question_is_a_fault():
    with pytest.raises(RowError, match="no question: the user has no turn"):
        convert({"messages": [SYSTEM]}, "messages", "prompt")


def test_conversations_alone_say_nothing_of_preferences(tmp_path):
    path = write(tmp_path, [{"instruction": "Hi.", "output": "Yes."}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: these rows say nothing of which answers are good"):
        load(path, "preference")
    with pytest.raises(RecipeError, match="gives conversations, and preferences are wanted"):
        load(path, "preference", format="alpaca")
    with pytest.raises(RecipeError, match="gives judged answers, and preferences are wanted"):
        load(path, "preference", format="judged")


def test_columns_of_other_names_are_mapped_and_a_near_miss_is_told_how(tmp_path):
    path = write(tmp_path, [{"query": "Hi.", "better": "Yes.", "worse": "No."}])
    with pytest.raises(DataError, match=r"\{prompt: query, chosen: better, rejected: worse\}"):
        load(path, "preference")
    mapping = {"prompt": "query", "chosen": "better", "rejected": "worse"}
    assert load(path, "preference", columns=mapping).report["sources"][0]["format"] == "preference"


def test_all_pairs_of_a_row_are_held_out_together_and_the_report_counts_rows_and_examples(tmp_path):
    rows = [{"prompt": f"Say {n}.", "answers": ["a", "b", "c"]} for n in range(10)]
    loaded = load(write(tmp_path, rows), "preference")
    assert (loaded.report["sources"][0]["rows"], loaded.report["sources"][0]["examples"]) == (10, 30)
    train, held_out = split_examples(loaded, 0.3, seed=1)
    assert (len(train.dataset), len(held_out.dataset)) == (21, 9)
    assert not set(train.dataset["row"]) & set(held_out.dataset["row"])
    one_row = load(write(tmp_path, rows[:1]), "preference")
    with pytest.raises(DataError, match="one row cannot be split"):
        split_examples(one_row, 0.5, seed=1)


def test_prompts_without_an_answer_are_no_news(tmp_path):
    path = write(tmp_path, [{"messages": [USER, GOOD, USER]}])
    assert load(path, "prompt").report["sources"][0]["notes"] == []
    assert "without an answer" in load(path, "conversation").report["sources"][0]["notes"][0]


def test_anthropics_harmless_pairs_count_exactly_the_faulty_ones(shared_data):
    path = shared_data / "preference/hh_harmless_base_test.jsonl.gz"
    source = load(path, "preference").report["sources"][0]
    assert (source["format"], source["rows"], source["bad_rows"]) == ("dialogues", 2303, 9)
    assert source["bad_reasons"] == {
        "empty chosen": {"rows": 4, "first": [f"{path}:{line}" for line in (87, 517, 926, 1104)]},
        "prompts differ": {"rows": 5, "first": [f"{path}:{line}" for line in (1255, 1689, 1951, 1953, 2037)]},
    }
    with pytest.raises(DataError, match=r"hh_harmless_base_test.jsonl.gz:87: empty chosen"):
        load(path, "preference", on_bad_rows="error")


@pytest.mark.parametrize(
    ("name", "kind", "format", "rows", "examples"),
    [
        ("orca_dpo_pairs_validation.jsonl", "preference", "openai_preference", 284, 284),
        ("orca_dpo_pairs_validation.jsonl", "judged", "openai_preference", 284, 568),
        ("kto_en_demo.json", "judged", "judged_messages", 300, 300),
        ("kto_en_demo.json", "prompt", "messages", 300, 300),
    ],
)
def test_real_preferences_are_read_whole(name, kind, format, rows, examples, shared_data):
    loaded = load(shared_data / "preference" / name, kind, on_bad_rows="error")
    source = loaded.report["sources"][0]
    assert (source["format"], source["rows"], len(loaded.dataset)) == (format, rows, examples)


def test_half_of_the_real_verdicts_are_good_ones(shared_data):
    loaded = load(shared_data / "preference/kto_en_demo.json", "judged")
    assert sum(judged_from_json(text).desirable for text in loaded.dataset["example"]) == 150


def write(tmp_path: Path, rows: list[dict]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, kind: Kind, on_bad_rows: str = "skip", **source) -> LoadedExamples:
    return load_examples(SourceSettings(path=str(path), **source), kind=kind, seed=0, on_bad_rows=on_bad_rows)
