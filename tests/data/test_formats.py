"""Each format on rows small enough to check by eye, the choice between them, and the mapping of columns."""

import json

import pytest

from finetune.data.examples import Conversation, Document, Message, Origin, to_json
from finetune.data.formats import FORMATS, check_mapping, find_format, from_json, to_examples
from finetune.errors import DataError, RecipeError
from finetune.recipe.row_kinds import FORMAT_KINDS

HERE = Origin("rows.jsonl", 7)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def convert(row: dict, format: str, **columns: str):
    (example,) = to_examples(row, format, columns, HERE, FORMAT_KINDS[format])
    # Whatever a row becomes is the same after it lay on the disk.
    assert from_json(to_json(example), HERE) == example
    return example


def messages(row: dict, format: str, **columns: str) -> list[Message]:
    conversation = convert(row, format, **columns)
    assert isinstance(conversation, Conversation)
    return list(conversation.messages)


def test_alpaca_keeps_the_input_apart_from_the_instruction():
    row = {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Be brief."}
    assert messages(row, "alpaca") == [
        Message("system", "Be brief."),
        Message("user", "Add.", input="1, 2"),
        Message("assistant", "3"),
    ]


@pytest.mark.parametrize("nothing", ["", "  \n", None])
def test_alpaca_without_an_input_or_system_has_none(nothing):
    row = {"instruction": "Hi.", "input": nothing, "output": " Hello. ", "system": nothing}
    assert messages(row, "alpaca") == [Message("user", "Hi."), Message("assistant", " Hello. ")]


def test_sharegpt_calls_results_and_tools_become_openai_shaped():
    row = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bonn"}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny."},
        ],
        "tools": '[{"name": "weather", "parameters": {"type": "object"}}]',
    }
    assert messages(row, "sharegpt") == [
        Message("user", "Weather?"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "sunny"),
        Message("assistant", "Sunny."),
    ]
    assert convert(row, "sharegpt").tools == (TOOL,)


def test_messages_keep_calls_identities_weights_and_join_text_parts():
    arguments = {"name": "weather", "arguments": '{"city": "Bonn"}'}
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Wea"}, {"type": "text", "text": "ther?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": arguments}],
                "weight": 0,
            },
            {"role": "tool", "content": "sunny", "tool_call_id": "c1", "name": "weather"},
            {"role": "assistant", "content": "Sunny.", "weight": 1},
        ],
        "tools": [TOOL],
    }
    assert messages(row, "messages") == [
        Message("system", "Be brief."),
        Message("user", "Weather?"),
        Message("assistant", "", weight=0, tool_calls=({"id": "c1", **CALL},)),
        Message("tool", "sunny", tool_call_id="c1", name="weather"),
        Message("assistant", "Sunny.", weight=1),
    ]


def test_several_results_may_follow_one_call_and_a_call_may_follow_a_result():
    call = {"role": "assistant", "tool_calls": [CALL]}
    result = {"role": "tool", "content": "1"}
    turns = [
        {"role": "user", "content": "x"},
        call,
        result,
        result,
        call,
        result,
        {"role": "assistant", "content": "y"},
    ]
    assert len(messages({"messages": turns}, "messages")) == 7


def test_a_conversation_may_end_with_a_call_or_a_question():
    user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    assert messages({"messages": [user, {"role": "assistant", "tool_calls": [CALL]}]}, "messages")[-1].tool_calls
    assert messages({"messages": [user, answer, user]}, "messages")[-1].role == "user"


def test_prompt_and_completion_may_be_texts():
    assert messages({"prompt": "2+2", "completion": " 4"}, "prompt_completion") == [
        Message("user", "2+2"),
        Message("assistant", " 4"),
    ]


def test_answers_inside_a_prompt_of_messages_are_not_trained():
    user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    row = {"prompt": [user, answer, user], "completion": [answer]}
    assert [message.weight for message in messages(row, "prompt_completion")] == [None, 0, None, None]


def test_text_is_a_document():
    assert convert({"text": " Once. \n", "label": 1}, "text") == Document(" Once. \n", HERE)


def test_lists_may_stand_as_json_text_as_in_csv():
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert messages({"messages": json.dumps(turns)}, "messages") == messages({"messages": turns}, "messages")


def test_mapped_columns_are_read_under_the_formats_names_alone():
    row = {"question": "Q", "instruction": "not this", "input": "A"}
    assert messages(row, "alpaca", instruction="question", output="input") == [
        Message("user", "Q"),
        Message("assistant", "A"),
    ]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["messages", "prompt", "completion"], "messages"),
        (["conversations", "instruction", "output"], "sharegpt"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["prompt", "completion", "text"], "prompt_completion"),
        (["instruction", "text"], None),
        (["prompt", "chosen", "rejected"], None),
    ],
)
def test_auto_takes_the_first_format_whose_columns_are_there(columns, expected):
    assert find_format(columns, "conversation") == expected


def test_auto_looks_for_text_alone_where_documents_are_wanted():
    assert find_format(["instruction", "output", "text"], "document") == "text"
    assert find_format(["instruction", "output"], "document") is None


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_without_its_columns_is_a_data_error_with_its_line(name):
    with pytest.raises(DataError, match=r"^rows.jsonl:7: no `"):
        to_examples({"other": "x"}, name, {}, HERE, FORMAT_KINDS[name])


def test_a_mapping_from_a_name_that_no_format_has_is_a_recipe_error_with_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean `instruction`"):
        check_mapping({"instructoin": "question"}, "auto", "data.train")
    with pytest.raises(RecipeError, match="`text` does not read"):
        check_mapping({"output": "answer"}, "text", "data.train")


def test_a_message_has_place_reason_and_detail():
    with pytest.raises(DataError) as caught:
        to_examples({"messages": [{"role": "narrator"}]}, "messages", {}, HERE, "conversation")
    expected = 'rows.jsonl:7: unknown role "narrator" (turn 1); known: system, developer, user, assistant, tool.'
    assert str(caught.value) == expected
