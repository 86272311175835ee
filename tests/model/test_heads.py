"""Which part of a classifier is its head, how it is drawn, held and counted, and what each kind of base ends with."""

import math

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, set_seed

from finetune.errors import RecipeError
from finetune.model.adapters import attach_adapter, count_parameters
from finetune.model.base import BaseModel, check_base, find_position_limit, load_base, load_config
from finetune.model.heads import LabelSpace, find_class, find_head_modules, set_labels, write_labels
from finetune.recipe.schema import AdapterSettings, ModelSettings

H, F, LAYERS, VOCAB = 16, 32, 2, 48
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": H,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODERNBERT = {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}
KINDS = {
    # model_type: settings beyond the sizes, and the modules that nothing has taught before
    "bert": ({}, ("bert.pooler.dense", "classifier")),
    "roberta": ({}, ("classifier",)),
    "xlm-roberta": ({}, ("classifier",)),
    "electra": ({"embedding_size": H}, ("classifier",)),
    "deberta": ({}, ("pooler.dense", "classifier")),
    "deberta-v2": ({}, ("pooler.dense", "classifier")),
    # The head for masked tokens has the dense layer that the classifier begins with.
    "modernbert": (MODERNBERT, ("classifier",)),
    "mistral": ({"num_key_value_heads": 1}, ("score",)),
    "llama": ({"num_key_value_heads": 1}, ("score",)),
    "qwen2": ({"num_key_value_heads": 1}, ("score",)),
}
ENCODERS = ["bert", "roberta", "deberta-v2", "modernbert"]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # DeBERTa's, at its import
THREE = LabelSpace(("no", "maybe", "yes"))


def shape_of(kind: str) -> dict[str, object]:
    return {"model_type": kind, **SIZES, **KINDS[kind][0]}


def random_base(kind: str, head: str = "labels", quantization: str = "none", **settings: object) -> BaseModel:
    model = ModelSettings(
        weights="random", config=shape_of(kind), quantization=quantization, device="cpu", compute_dtype="float32"
    )
    return load_base(model, head=head, labels=THREE if head == "labels" else None, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT with a head for masked tokens."""
    folder = tmp_path_factory.mktemp("bert")
    set_seed(0)
    BertForMaskedLM(BertConfig(**SIZES, initializer_range=0.2)).save_pretrained(folder)
    return folder


def load(folder, labels: LabelSpace = THREE, quantization: str = "none", **settings: object) -> BaseModel:
    model = ModelSettings(
        model_name_or_path=str(folder), quantization=quantization, device="cpu", compute_dtype="float32"
    )
    return load_base(model, head="labels", labels=labels, **settings)


# ---- which it is


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_what_the_language_model_of_the_architecture_has_not(kind):
    fields, expected = KINDS[kind]
    config = AutoConfig.for_model(kind, **SIZES, **fields)
    set_labels(config, THREE)
    assert find_head_modules(config) == expected


def test_a_head_of_several_layers_is_found_whole():
    config = AutoConfig.for_model("distilbert", vocab_size=VOCAB, dim=H, hidden_dim=F, n_layers=1, n_heads=2)
    assert find_head_modules(config) == ("pre_classifier", "classifier")


def test_of_an_architecture_without_a_language_model_the_head_is_what_is_not_its_body():
    config = AutoConfig.for_model(
        "canine", hidden_size=H, intermediate_size=F, num_hidden_layers=1, num_attention_heads=2
    )
    assert find_class(config, "masked") is find_class(config, "words") is None
    assert find_head_modules(config) == ("classifier",)


def test_a_base_that_classifies_nothing_is_refused():
    with pytest.raises(RecipeError, match="of which transformers has no text classifier"):
        check_base(ModelSettings(weights="random", config={"model_type": "clip"}, device="cpu"), head="labels")
    with pytest.raises(RecipeError, match="no encoder that restores masked tokens"):
        check_base(ModelSettings(weights="random", config=shape_of("llama"), device="cpu"), head="masked")


# ---- how it is drawn


def head_of(base: BaseModel) -> dict[str, torch.Tensor]:
    modules = tuple(f"{name}." for name in find_head_modules(base.model.config))
    return {name: tensor for name, tensor in base.model.state_dict().items() if name.startswith(modules)}


def test_a_head_that_no_file_holds_is_drawn_by_the_seed_alone(folder):
    torch.manual_seed(1)
    first = head_of(load(folder, seed=5))
    torch.manual_seed(2)
    second, other = head_of(load(folder, seed=5)), head_of(load(folder, seed=6))
    assert sorted(first) == [
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"
    ]  # fmt: skip
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_head_of_another_width_is_drawn_anew_and_the_rest_of_it_kept(folder, tmp_path):
    config = AutoConfig.from_pretrained(folder, num_labels=5)
    set_seed(7)
    saved = AutoModelForSequenceClassification.from_config(config)
    saved.save_pretrained(tmp_path)
    base = load(tmp_path)
    assert base.head_modules == ("classifier",)
    assert base.model.classifier.weight.shape == (3, H)
    assert torch.equal(base.model.bert.pooler.dense.weight, saved.bert.pooler.dense.weight)
    # One of its own width is gone on from, all of it.
    five = load(tmp_path, labels=LabelSpace(tuple("abcde")))
    assert five.head_modules == ("bert.pooler.dense", "classifier")
    assert torch.equal(five.model.classifier.weight, saved.classifier.weight)


def test_names_go_into_the_config_and_a_number_has_one_output(folder, tmp_path):
    model = load(folder).model
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    write_labels(model, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).label2id == {"no": 0, "maybe": 1, "yes": 2}
    number = load(folder, labels=LabelSpace(None)).model
    assert (number.num_labels, number.config.problem_type) == (1, "regression")


# ---- how it is held and counted


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_the_head_stays_unquantized_on_a_4_bit_base(kind):
    base = random_base(kind, quantization="nf4")
    in_4_bits = {name for name, module in base.model.named_modules() if isinstance(module, Linear4bit)}
    plain = {name for name, module in base.model.named_modules() if type(module) is nn.Linear}
    assert in_4_bits
    heads = KINDS[kind][1]
    assert plain == {name for name in plain | in_4_bits if name.startswith(heads)} != set()


def test_the_head_stays_unquantized_where_the_base_comes_from_files(folder):
    base = load(folder, quantization="nf4")
    assert type(base.model.classifier) is type(base.model.bert.pooler.dense) is nn.Linear
    assert isinstance(base.model.bert.encoder.layer[0].output.dense, Linear4bit)


R, M = 2, 4
LINEARS = [(H, H)] * 4 + [(H, F), (F, H)]  # of a layer: query, key, value, output; up and down
HEAD = (H * H + H) + (3 * H + 3)  # pooler, classifier
FORMULAS = {
    # LoRA: r (in + out) for each linear layer (Hu et al. 2021, section 4.2).
    "lora": ({"r": R, "lora_alpha": 4}, LAYERS * sum(R * (i + o) for i, o in LINEARS)),
    # Houlsby: 2 M D + D + M for each of two in a layer (Houlsby et al. 2019, section 2.1).
    "bottleneck": ({"size": M}, LAYERS * 2 * (2 * M * H + H + M)),
    # BitFit: every bias of the linear layers and norms (Ben Zaken et al. 2021); the embeddings' norm is one.
    "bitfit": ({}, LAYERS * (sum(o for _, o in LINEARS) + 2 * H) + H),
}


@pytest.mark.parametrize("method", FORMULAS)
def test_what_is_trained_is_the_papers_formula_and_the_head(folder, method):
    fields, number = FORMULAS[method]
    model = attach_adapter(load(folder), AdapterSettings(method=method, **fields), seed=0)
    assert count_parameters(model).trainable == number + HEAD
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum("modules_to_save" in name for name in trained) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_leaves_the_head_alone_and_the_head_is_saved_beside_the_adapter(kind, tmp_path):
    model = attach_adapter(random_base(kind), AdapterSettings(method="lora", r=2), seed=0)
    heads = KINDS[kind][1]
    assert not any("lora_" in name and head in name for name, _ in model.named_parameters() for head in heads)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    for head in heads:
        assert any(f".{head}." in name for name in saved), head


# ---- positions, and bases of random weights


def test_roberta_has_positions_for_two_tokens_fewer_than_its_table(tmp_path):
    settings = ModelSettings(
        weights="random", config={"model_type": "roberta", "max_position_embeddings": 514}, device="cpu"
    )
    assert find_position_limit(load_config(settings)) == 512
    check_base(settings, max_length=512, head="labels")
    with pytest.raises(RecipeError, match=r"`data.max_length` is 513 tokens, and `model.config` has positions for 512"):
        check_base(settings, max_length=513, head="labels")
    config = AutoConfig.for_model("roberta", **SIZES | {"pad_token_id": 1, "bos_token_id": 0})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    limit = find_position_limit(config)
    assert model(torch.full((1, limit), 5)).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(torch.full((1, limit + 1), 5))


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("head", ["words", "masked", "labels"])
def test_random_weights_of_an_encoder_are_all_there_and_compute(kind, head):
    if find_class(AutoConfig.for_model(kind), head) is None:
        with pytest.raises(RecipeError):
            random_base(kind, head)
        return
    model = random_base(kind, head).model
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    torch.manual_seed(3)
    again = random_base(kind, head).model
    for (name, tensor), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    ids = torch.arange(3, 15)[None]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert logits.isfinite().all()
    assert logits.shape == ((1, 3) if head == "labels" else (1, 12, VOCAB))
    # Drawn as the architecture draws them: a wrong scale would show in the logits' size.
    assert 0 < logits.std() < 10 and math.isfinite(float(logits.std()))


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_of_random_weights_is_the_same_when_saved_and_opened(kind, tmp_path):
    model = random_base(kind, "masked").model
    model.save_pretrained(tmp_path)
    settings = ModelSettings(
        model_name_or_path=str(tmp_path), quantization="none", device="cpu", compute_dtype="float32"
    )
    opened = load_base(settings, head="masked").model
    ids = torch.arange(3, 15)[None]
    assert torch.equal(model(input_ids=ids).logits, opened(input_ids=ids).logits)
