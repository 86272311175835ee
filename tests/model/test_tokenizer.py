"""A bare SentencePiece model keeps its ids or is refused; pad and end are there; a saved tokenizer comes back."""

import io
import json
import shutil

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune.data.examples import Conversation, Message
from finetune.data.rendering import Renderer
from finetune.data.templates import load_template
from finetune.errors import PlaceError, RecipeError
from finetune.model.sentencepiece_conversion import convert_sentencepiece
from finetune.model.tokenizer import choose_pad_token, load_tokenizer
from finetune.recipe.schema import ModelSettings

FILES = ("mistral_tokenizer.model.v1", "llama2_tokenizer.model")


@pytest.fixture(params=FILES, scope="module")
def path(request, shared_data):
    return shared_data / "tokenizers" / request.param


@pytest.fixture(scope="module")
def tokenizer(path):
    return load(path)


@pytest.fixture(scope="module")
def pieces(path):
    return SentencePieceProcessor(model_file=str(path))


def load(path):
    return load_tokenizer(ModelSettings(model_name_or_path=str(path)))


def encode(tokenizer, texts):
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_all_alpaca_rows_get_sentencepieces_ids(tokenizer, pieces, shared_data):
    rows = json.loads((shared_data / "instructions" / "alpaca_cleaned_first5000.json").read_text("utf-8"))
    assert len(rows) == 5000
    for column in ("instruction", "input", "output"):
        texts = [row[column] for row in rows]
        assert encode(tokenizer, texts) == pieces.encode(texts)


def test_runs_and_edges_get_sentencepieces_ids(tokenizer, pieces):
    texts = [sign * length + end for sign in " \t\n-=_#." for length in (*range(1, 70), 200) for end in ("", "x", " x")]
    assert encode(tokenizer, texts) == pieces.encode(texts)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    text=st.text(st.sampled_from(" " * 5 + "\n\tab1.-é😀▁\u200b") | st.characters(exclude_categories=["Cs"])).filter(
        lambda text: "<" not in text
    )
)
def test_any_text_gets_sentencepieces_ids(text, tokenizer, pieces):
    assert encode(tokenizer, [text])[0] == pieces.encode(text)


def test_the_special_tokens_are_the_models_own(tokenizer, pieces):
    assert tokenizer.bos_token_id == pieces.bos_id() == 1
    assert tokenizer.eos_token_id == pieces.eos_id() == 2
    assert tokenizer.unk_token_id == pieces.unk_id() == 0
    assert len(tokenizer) == pieces.get_piece_size()
    assert tokenizer("a")["input_ids"] == [1, *pieces.encode("a")]
    assert tokenizer.decode(tokenizer("  a  b")["input_ids"], skip_special_tokens=True) == "  a  b"


def test_the_pad_token_is_one_that_the_vocabulary_has_and_not_the_end(tokenizer, pieces):
    assert tokenizer.pad_token == "<unk>"
    assert tokenizer.pad_token_id < pieces.get_piece_size()
    assert tokenizer.padding_side == "right"


def test_a_saved_tokenizer_reads_back_with_the_same_ids_and_the_template(tokenizer, tmp_path):
    template = load_template("mistral", tokenizer)
    tokenizer.chat_template = template.serving_source
    tokenizer.save_pretrained(tmp_path)
    # As beside a whole model, where the config's kind could lead to another class.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}), encoding="utf-8")
    turns = (Message("user", "  two  spaces"), Message("assistant", "  x\n\n  y"))
    for again in (AutoTokenizer.from_pretrained(tmp_path), load(tmp_path)):
        assert encode(again, ["  a   b", "\n\n x"]) == encode(tokenizer, ["  a   b", "\n\n x"])
        assert (again.pad_token, again.bos_token, again.eos_token) == ("<unk>", "<s>", "</s>")
        served = again.apply_chat_template([{"role": t.role, "content": t.content} for t in turns], return_dict=False)
        assert served == Renderer(template, tokenizer).render([Conversation(turns)])[0].input_ids
    assert load_template("model", again).serving_source == template.serving_source


def test_a_folder_with_a_bare_model_is_converted_and_its_template_kept(path, tokenizer, tmp_path):
    shutil.copy(path, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ bos_token }}"}), encoding="utf-8")
    found = load(tmp_path)
    assert encode(found, ["  a   b"]) == encode(tokenizer, ["  a   b"])
    assert found.chat_template == "{{ bos_token }}"


def test_a_tokenizer_in_the_home_folder_is_found_by_its_tilde(tokenizer, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert encode(load("~/mine"), ["  a   b"]) == encode(tokenizer, ["  a   b"])


def test_tokens_added_to_a_bare_model_are_not_lost_without_a_word(path, tmp_path):
    shutil.copy(path, tmp_path / "tokenizer.model")
    added = {"added_tokens_decoder": {"32000": {"content": "<|im_end|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"tokens were added to this SentencePiece model \(<\|im_end\|>\)"):
        load(tmp_path)


def train(folder, **how):
    """A small SentencePiece model of a kind of one's own."""
    model = io.BytesIO()
    sentences = [f"the {colour} box holds {n} balls" for n in range(40) for colour in ("red", "blue", "green")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, minloglevel=2, hard_vocab_limit=False, **how
    )
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


PLAIN = {
    "model_type": "bpe",
    "vocab_size": 330,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
}


def test_a_model_of_ones_own_keeps_its_ids(tmp_path):
    path = train(tmp_path, **PLAIN, pad_id=3)
    tokenizer, pieces = load(path), SentencePieceProcessor(model_file=str(path))
    texts = ["the red box", "  two  balls\n", "😀 green"]
    assert encode(tokenizer, texts) == pieces.encode(texts)
    assert tokenizer.pad_token_id == 3
    assert train(tmp_path, **PLAIN, add_dummy_prefix=False)
    assert encode(load(path), texts) == SentencePieceProcessor(model_file=str(path)).encode(texts)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "unigram", "vocab_size": 300}, "it is not of the BPE kind"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it rewrites characters"),
        ({"remove_extra_whitespaces": True}, "it removes extra spaces"),
        ({"user_defined_symbols": ["<sep>"]}, "'a <sep> b<sep>' gets other ids than SentencePiece gives it"),
    ],
)
def test_a_model_that_cannot_be_converted_is_refused_with_the_reason(change, reason, tmp_path):
    with pytest.raises(RecipeError, match=f"cannot be converted with equal ids: .*{reason}"):
        convert_sentencepiece(train(tmp_path, **(PLAIN | change)))


class TestWithoutATokenizer:
    def test_a_name_that_is_not_here_says_the_ways_out(self):
        with pytest.raises(
            PlaceError, match=r"(?s)mistralai/Mistral-7B-v0\.1 .*hf download .*hf auth login.*make quickstart"
        ):
            load_tokenizer(ModelSettings(model_name_or_path="mistralai/Mistral-7B-v0.1"))

    def test_a_name_that_the_hub_cannot_have_is_said_to_be_none(self):
        with pytest.raises(PlaceError, match="a name on the Hub has the form OWNER/MODEL"):
            load_tokenizer(ModelSettings(model_name_or_path="org/my..base"))

    def test_a_folder_that_is_not_there_is_no_name_on_the_hub(self):
        with pytest.raises(PlaceError, match=r"\./nowhere: there is no such folder"):
            load_tokenizer(ModelSettings(model_name_or_path="./nowhere"))

    def test_a_folder_without_a_tokenizer_says_how_to_name_one(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        with pytest.raises(PlaceError, match=r"(?s)holds no tokenizer that can be read.*model\.tokenizer_name_or_path"):
            load(tmp_path)

    def test_random_weights_still_need_a_tokenizer(self):
        with pytest.raises(RecipeError, match="no tokenizer is named"):
            load_tokenizer(ModelSettings(weights="random", config={"model_type": "llama"}))

    def test_another_file_is_refused(self, tmp_path):
        path = tmp_path / "vocab.txt"
        path.write_text("a", encoding="utf-8")
        with pytest.raises(RecipeError, match="not called like a SentencePiece model"):
            load(path)


def word_level(*tokens, **special):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    backend = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=tokens[0]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_the_pad_token_is_a_reserved_one_before_the_unknown_and_the_end_last():
    assert choose_pad_token(word_level("a", "<|finetune_right_pad_id|>", "</s>", eos_token="</s>")) != "</s>"
    assert choose_pad_token(word_level("<unk>", "<pad>", "</s>", eos_token="</s>", unk_token="<unk>")) == "<pad>"
    assert choose_pad_token(word_level("<unk>", "</s>", eos_token="</s>", unk_token="<unk>")) == "<unk>"
    assert choose_pad_token(word_level("a", "</s>", eos_token="</s>")) == "</s>"


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    word_level("a", "b").save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        load(tmp_path)
