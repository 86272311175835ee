"""The tiny world's promises: a clean split, files the generator makes again, a tokenizer equal to SentencePiece."""

import json
import re
from pathlib import Path

import pytest

from data.world.__main__ import build_cards, build_sets, find_differences
from data.world.cards import read_content, to_sha256
from data.world.instructions import list_wordings
from data.world.split import build_relations

DATA_DIR = Path(__file__).resolve().parents[2] / "data"
SETS = DATA_DIR / "tiny_world"
BASE = DATA_DIR / "tiny_base"

AWKWARD = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "a",
    " a",
    "a ",
    "a  b",
    "  a   b    c",
    "\ta\t\tb",
    "line\nline",
    " \n \n ",
    "green\n",
    "\ngreen",
    "😀",
    "naïve café",
    "日本語 text",
    "1234567890",
    "3.14 and 2e-4",
    "<s>not a token",
    "x</s>",
    "[INST] hi [/INST]",
    "### Response:\n",
    "▁",
    "▁▁ ▁",
    "\r\n",
    'it\'s "quoted"',
    "\u00a0no-break",
    "\u200bzero",
    "ÅÄÖ",
    "a\x00b",
    "﷽",
    "e\u0301",
)


def read_rows(name: str) -> list[dict]:
    """The rows of a file of tiny_world."""
    content = read_content(SETS / name)
    return json.loads(content) if name.endswith(".json") else [json.loads(line) for line in content.splitlines()]


def normalise(text: str) -> str:
    """Lower case, letters and digits only, one space between words."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def prompt_of(row: dict) -> tuple[str, str]:
    """What a model is shown of an instruction row, normalised."""
    return normalise(row["instruction"]), normalise(row["input"])


@pytest.fixture(scope="module")
def train() -> list[dict]:
    return read_rows("train.json")


@pytest.fixture(scope="module")
def test() -> list[dict]:
    return read_rows("test.json")


def test_no_prompt_stands_in_both_train_and_test(train, test):
    assert not {prompt_of(row) for row in train} & {prompt_of(row) for row in test}


def test_no_prompt_stands_in_both_even_when_instruction_and_input_are_joined(train, test):
    assert not {" ".join(prompt_of(row)).strip() for row in train} & {" ".join(prompt_of(row)).strip() for row in test}


def test_no_fact_is_asked_about_in_the_same_task_on_both_sides(train, test):
    assert not {(row["task"], row["fact"]) for row in train} & {(row["task"], row["fact"]) for row in test}


def test_no_question_and_answer_pair_is_on_both_sides_whatever_the_task_is_called(train, test):
    assert not {row["fact"] for row in train} & {row["fact"] for row in test}


def test_no_prompt_has_two_answers(train, test):
    for rows in (train, test):
        prompts = [prompt_of(row) for row in rows]
        assert len(prompts) == len(set(prompts))


def test_no_wording_of_an_instruction_is_a_wording_of_the_other_side_or_of_the_base_text():
    for relation in build_relations():
        trained = {normalise(w) for part in list_wordings(relation, held_out=False) for w in part}
        tested = {normalise(w) for part in list_wordings(relation, held_out=True) for w in part}
        base = {normalise(w) for w in relation.questions}
        assert not trained & tested, relation.name
        assert not (trained | tested) & base, relation.name


def test_the_base_text_holds_no_prompt_of_the_instruction_sets(train, test):
    asked = {normalise(row["instruction"]) for row in train + test}
    lines = {
        normalise(re.sub(r"^(\d+\.|\w+:) ", "", line))
        for row in read_rows("text.jsonl.gz")
        for line in row["text"].split("\n")
    }
    assert not asked & lines


def test_the_base_text_never_uses_the_instruction_form():
    assert b"###" not in read_content(SETS / "text.jsonl.gz")


def test_the_test_has_at_least_200_questions_of_every_kind_and_there_are_at_least_12_kinds(train, test):
    kinds = {row["task"] for row in test}
    assert len(test) >= 200
    assert len(kinds) >= 12
    assert kinds == {row["task"] for row in train}


def test_no_answer_is_worth_guessing(train, test):
    """The most frequent training answer of each task, given to each of its test questions, scores at most 12 %."""
    hits = 0
    for task in {row["task"] for row in test}:
        answers = [row["output"] for row in train if row["task"] == task]
        guess = max(sorted(set(answers)), key=answers.count)
        hits += sum(row["output"] == guess for row in test if row["task"] == task)
    assert hits <= 0.12 * len(test)


def test_an_input_or_instruction_never_holds_its_answer(train, test):
    leaks = [row for row in train + test if f" {normalise(row['output'])} " in f" {' '.join(prompt_of(row))} "]
    assert not leaks


def test_preferences_prefer_another_answer_and_hold_out_the_same_facts(train):
    asked = {row["fact"] for row in train}
    for name, held_out in (("preferences.jsonl", False), ("preferences_test.jsonl", True)):
        for row in read_rows(name):
            assert row["chosen"] != row["rejected"]
            assert (row["fact"] not in asked) == held_out


def test_conversations_alternate_and_end_with_the_assistant():
    for row in read_rows("chat.jsonl"):
        roles = [message["role"] for message in row["messages"] if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) >= 4


def test_the_generator_makes_every_set_again_byte_for_byte():
    for name, content in build_sets().items():
        assert read_content(SETS / name) == content, f"data/tiny_world/{name}: run `python -m data.world`"


def test_the_tokenizer_is_made_again_byte_for_byte():
    pytest.importorskip("sentencepiece")
    assert find_differences(DATA_DIR, ("tokenizer",)) == []


def test_the_cards_hold_the_true_hash_of_every_file():
    for name, card in build_cards(DATA_DIR).items():
        assert (DATA_DIR / name).read_bytes() == card, f"data/{name}: run `python -m data.world cards`"
    for folder in (SETS, BASE):
        card = (folder / "README.md").read_text(encoding="utf-8")
        for path in folder.iterdir():
            if path.name != "README.md":
                assert to_sha256(read_content(path)) in card, path.name


def test_tokenizer_json_gives_the_ids_of_sentencepiece(train, test):
    sentencepiece = pytest.importorskip("sentencepiece")
    tokenizers = pytest.importorskip("tokenizers")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(BASE / "tokenizer.model"))
    fast = tokenizers.Tokenizer.from_file(str(BASE / "tokenizer.json"))
    fast.encode_special_tokens = True  # "<s>" in a text is text, as SentencePiece reads it
    texts = [row["text"] for row in read_rows("text.jsonl.gz")[::4]]
    texts += [row[column] for row in train + test for column in ("instruction", "input", "output")]
    texts += [text + other for text in AWKWARD for other in ("", "x", *AWKWARD)]
    for text, encoding in zip(texts, fast.encode_batch(texts), strict=True):
        assert encoding.ids == [pieces.bos_id(), *pieces.encode(text)], repr(text)


def test_the_tokenizer_loads_with_transformers_and_puts_one_bos_in_front():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    assert tokenizer("green\n").input_ids[:2] != [1, 1]
    assert tokenizer("green\n").input_ids[0] == tokenizer.bos_token_id == 1
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (2, 0, 3)
    assert tokenizer.decode(tokenizer("a  b\n\n 😀").input_ids, skip_special_tokens=True) == "a  b\n\n 😀"


def test_the_base_is_a_small_mistral():
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["MistralForCausalLM"]
    assert all(config[key] % 64 == 0 for key in ("hidden_size", "intermediate_size", "head_dim", "vocab_size"))
    assert (BASE / "model.safetensors").stat().st_size <= 8_000_000


def test_the_text_is_small_enough_to_commit():
    assert (SETS / "text.jsonl.gz").stat().st_size <= 2_000_000
