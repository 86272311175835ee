"""Texts are cut, read ahead and encoded in chunks, and come out as if each had been encoded whole and by itself."""

import json
import tracemalloc

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from finetune.data.encoding import Encoder
from finetune.data.examples import Conversation, Document, Message, Origin
from finetune.data.marked_jinja import MarkedText
from finetune.data.rendering import Renderer
from finetune.data.row_cache import build_key, write_cached
from finetune.data.sources import load_examples
from finetune.data.templates import load_template
from finetune.data.tokens import build_token_rows
from finetune.errors import DataError
from finetune.model.sentencepiece_conversion import convert_sentencepiece
from finetune.recipe.schema import SourceSettings


@pytest.fixture(scope="module")
def tokenizer():
    return convert_sentencepiece(MistralTokenizer.v1().instruct_tokenizer.tokenizer.file_path)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(load_template("alpaca", tokenizer), tokenizer)


def ask(number: int, answer: str = "It is {}.") -> Conversation:
    turns = (Message("user", f"Say {number}."), Message("assistant", answer.format(number)))
    return Conversation(turns, (), Origin("rows.jsonl", number))


# What lies around the cut: nothing, spaces, further line breaks, the tokenizer's own space sign, a control token.
EDGES = ["", " ", "  ", "\n", "\n\n", "\t", "▁", "</s>", "é", "\u0301", "😀", "x"]


@given(st.sampled_from(EDGES), st.sampled_from(EDGES), st.text(alphabet="a b\n.▁é1</s>", max_size=20))
@settings(deadline=None, max_examples=200)
def test_a_text_cut_behind_line_breaks_has_the_tokens_of_the_whole(tokenizer, encoder, before, behind, text):
    prompt, answer = f"<s>Ask {text}{before}\n", f"{behind}{text} and so on</s>"
    (encoded,) = encoder.encode([MarkedText(prompt + answer, [(len(prompt), len(prompt + answer))])])
    whole = tokenizer.backend_tokenizer.encode(prompt + answer, add_special_tokens=False)
    assert encoded.ids == whole.ids
    starts_within = [number for number, (start, _) in enumerate(whole.offsets) if start >= len(prompt)]
    assert encoded.spans == [(starts_within[0], len(whole.ids))]


def test_rows_of_many_chunks_come_in_their_order_each_as_by_itself(renderer):
    examples = [Document(f"text {number}") if number % 7 == 0 else ask(number) for number in range(1200)]
    rows = list(renderer.render_each(examples))
    assert [example for example, _ in rows] == examples
    assert all(rows[number][1] == renderer.render([examples[number]])[0] for number in range(0, 1200, 97))


@pytest.mark.parametrize(("text", "most_ahead"), [("short", 4000), ("long " * 20_000, 40)])
def test_few_rows_are_read_ahead_and_of_long_ones_fewer(renderer, text, most_ahead):
    num_read, ahead = 0, []

    def read():
        nonlocal num_read
        for number in range(6000 if text == "short" else 60):
            num_read += 1
            yield Document(f"{number} {text}")

    for num_given, _ in enumerate(renderer.render_each(read()), start=1):
        ahead.append(num_read - num_given)
    assert num_read == num_given and max(ahead) <= most_ahead


def test_a_fault_far_into_the_rows_is_named_with_its_line(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Say {n}.", "output": "</s>" if n == 900 else f"{n}."} for n in range(1, 1001)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_examples(SourceSettings(path=str(path)), kind="conversation", seed=0, on_bad_rows="error")
    strict = Renderer(load_template("alpaca", tokenizer), tokenizer, special_tokens_in_data="error")
    with pytest.raises(DataError, match=r"rows\.jsonl:900: the control token '</s>' stands in the text"):
        build_token_rows(loaded, strict, max_length=64, too_long="drop")


def test_a_second_time_the_rows_are_read_as_they_were_written(renderer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": f"{n}."}) + "\n" for n in range(9)))
    loaded = load_examples(SourceSettings(path=str(path)), kind="conversation", seed=0, on_bad_rows="error")
    first, second, shorter = (
        build_token_rows(loaded, renderer, max_length=length, too_long="drop").account for length in (64, 64, 63)
    )
    assert first.cache_files == second.cache_files != shorter.cache_files
    assert first.to_list() == second.to_list()


def test_ten_times_the_rows_take_no_more_memory_to_write(tmp_path):
    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "row": pa.int64()})
    peaks = []
    for num_rows in (2_000, 20_000):
        tracemalloc.start()
        rows, _ = write_cached(
            build_key({"test": str(tmp_path), "rows": num_rows}), schema, (([n] * 300, n) for n in range(num_rows))
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert rows[num_rows - 1] == {"input_ids": [num_rows - 1] * 300, "row": num_rows - 1}
    assert peaks[1] < 1.2 * peaks[0] < 10e6  # bytes; all ids of the larger set are 48 MB as Python holds them
