import json
import shutil
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, GenerationConfig

from finetune.errors import PlaceError, RecipeError
from finetune.model import merging
from finetune.model.base import BaseModel
from finetune.model.loading import Speaker, load_for_inference
from finetune.model.merging import (
    check_mergeable,
    check_room,
    compare_logits,
    merge_adapter,
    to_logits,
    write_merged,
)
from finetune.model.targets import Target, find_target
from finetune.recipe.schema import ModelSettings
from finetune.run.writing import sync_tree
from tests.model.saved_runs import write_base, write_run

PROMPTS = [[1, 40, 41, 42, 43, 44], [1, 300, 301, 302], list(range(5, 60))]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def run(base_dir, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("outputs") / "run", base_dir)


def load(run: Path) -> Speaker:
    return load_for_inference(str(run))


METHODS = [
    ("nf4", {"method": "lora", "r": 8}),
    ("fp4", {"method": "lora", "r": 8}),
    ("int8", {"method": "lora", "r": 8}),
    ("none", {"method": "lora", "r": 8}),
    ("nf4", {"method": "lora", "r": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]}),
    ("nf4", {"method": "lora", "r": 8, "use_dora": True}),
    ("nf4", {"method": "lora", "r": 8, "init_lora_weights": "pissa"}),
    ("nf4", {"method": "lora", "r": 8, "modules_to_save": ["lm_head"]}),
    ("nf4", {"method": "ia3"}),
    ("nf4", {"method": "vera"}),
    ("none", {"method": "loha", "r": 8}),
]


@pytest.mark.parametrize(("quantization", "adapter"), METHODS, ids=str)
def test_merged_in_float32_the_model_speaks_as_adapter_and_held_base_did(quantization, adapter, base_dir, tmp_path):
    speaker = load(write_run(tmp_path / "run", base_dir, quantization=quantization, adapter=adapter))
    expected = to_logits(speaker.model, PROMPTS)
    with speaker.model.disable_adapter():
        assert compare_logits(expected, to_logits(speaker.model, PROMPTS)).max_abs > 0.05

    difference = compare_logits(expected, to_logits(merge_adapter(speaker, torch.float32), PROMPTS))

    print(quantization, adapter, difference)
    # bitsandbytes' int8 rounds the activations too, which no merged weight can repeat.
    assert difference.max_abs < (0.2 if quantization == "int8" else 1e-4)


def test_the_adapter_is_merged_into_the_dequantized_weights_and_rounded_once(run):
    speaker = load(run)
    layer = speaker.model.get_base_model().model.layers[0].self_attn.q_proj
    held = layer.get_base_layer()
    weight = bnb.functional.dequantize_4bit(held.weight.data, held.weight.quant_state).float()
    change = layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
    expected = (weight + change).detach().to(torch.bfloat16)

    merged = merge_adapter(speaker, torch.bfloat16)

    found = merged.model.layers[0].self_attn.q_proj.weight
    assert (found != expected).float().mean() < 1e-3  # sums in another order fall on another side of a tie
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in merged.modules())


def test_the_folder_opens_without_peft_and_bitsandbytes_and_the_difference_is_told(run, tmp_path):
    folder = tmp_path / "merged"
    folder.mkdir()  # empty is as good as absent
    difference = write_merged(load(run), folder, torch.bfloat16, PROMPTS, sync=sync_tree)
    print("bfloat16", difference)

    assert not list(tmp_path.glob(".*"))
    assert not list(folder.glob("*.bin"))
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    speaker = load(run)
    assert compare_logits(to_logits(speaker.model, PROMPTS), to_logits(model, PROMPTS)) == difference
    assert 0 < difference.max_abs < 0.2
    assert difference.mean_kl_nats < 1e-3
    assert difference.greedy_agreement_fraction > 0.9
    assert difference.num_tokens == sum(map(len, PROMPTS))
    assert AutoTokenizer.from_pretrained(folder).chat_template == speaker.tokenizer.chat_template
    assert GenerationConfig.from_pretrained(folder).eos_token_id == speaker.eos_ids


def test_tied_embeddings_stay_tied(tmp_path):
    base = write_base(tmp_path / "tied", tie_word_embeddings=True)
    run = write_run(tmp_path / "run", base)
    write_merged(load(run), tmp_path / "merged", torch.float32, PROMPTS, sync=sync_tree)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT's, where the adapter is trained
@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["head", "embeddings", "both", "whole head", "whole embeddings"],
)
def test_a_change_of_one_of_two_tied_embeddings_stays_its_own(adapter, tmp_path):
    base = write_base(tmp_path / "tied", tie_word_embeddings=True)
    adapter = {"method": "lora", "r": 8} | adapter
    run = write_run(tmp_path / "run", base, quantization="none", adapter=adapter, training={"loss_type": "nll"})
    difference = write_merged(load(run), tmp_path / "merged", torch.float32, PROMPTS, sync=sync_tree)
    assert difference.max_abs < 1e-4  # of the folder, opened anew
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    "adapter",
    [
        {"trainable_token_indices": [40, 41]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=["some tokens", "whole embeddings", "one adapter for both"],
)
def test_tied_embeddings_that_the_adapter_changes_alike_stay_tied(adapter, tmp_path):
    base = write_base(tmp_path / "tied", tie_word_embeddings=True)
    adapter = {"method": "lora", "r": 8} | adapter
    run = write_run(tmp_path / "run", base, quantization="none", adapter=adapter, training={"loss_type": "nll"})
    difference = write_merged(load(run), tmp_path / "merged", torch.float32, PROMPTS, sync=sync_tree)
    assert difference.max_abs < 1e-4  # of the folder, opened anew
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    before = AutoModelForCausalLM.from_pretrained(base).lm_head.weight
    assert model.config.tie_word_embeddings is True
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.allclose(model.lm_head.weight[40], before[40], atol=1e-3)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("where", [{"target_modules": ["decoder"]}, {"target_modules": ["word_embeddings"]},
                                   {"target_modules": ["query"], "modules_to_save": ["decoder"]}], ids=str)  # fmt: skip
def test_of_an_encoder_the_bias_that_is_tied_beside_the_embeddings_is_kept(where, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    base = BertForMaskedLM(BertConfig(vocab_size=64, **sizes))
    torch.nn.init.normal_(base.get_output_embeddings().bias)
    model = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, **where)).eval()
    model.save_pretrained(tmp_path / "adapter")
    expected = to_logits(model, PROMPTS[:1])
    adapter_dir, settings = tmp_path / "adapter", ModelSettings(model_name_or_path="x")
    target = Target("x", settings, adapter_dir, adapter_dir, "lora", ends_with="masked")
    held = BaseModel(base, torch.device("cpu"), torch.float32, "none", "eager", None, torch.float32, "masked")
    speaker = Speaker(model, None, held, target, [], "")
    merge_adapter(speaker, torch.float32).save_pretrained(tmp_path / "merged")
    found = to_logits(BertForMaskedLM.from_pretrained(tmp_path / "merged").eval(), PROMPTS[:1])
    assert compare_logits(expected, found).max_abs < 1e-4


def test_a_real_pretrained_model_merges_within_float32s_rounding(shared_data, tmp_path):
    run = write_run(tmp_path / "run", shared_data / "models" / "stories260K")
    speaker = load(run)
    expected = to_logits(speaker.model, PROMPTS)
    difference = compare_logits(expected, to_logits(merge_adapter(speaker, torch.float32), PROMPTS))
    print("stories260K", difference)
    assert difference.max_abs < 1e-3


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ({"method": "prompt_tuning", "num_virtual_tokens": 4}, "vectors in front of the text"),
        ({"method": "prefix_tuning", "num_virtual_tokens": 4}, "vectors in front of the text"),
        ({"method": "lora", "alora_invocation_tokens": [5, 6]}, "behind its invocation tokens"),
    ],
    ids=str,
)
def test_a_method_that_does_not_merge_is_refused_with_the_reason(adapter, reason, base_dir, tmp_path):
    run = write_run(tmp_path / "run", base_dir, adapter=adapter)
    with pytest.raises(RecipeError, match=reason):
        check_mergeable(find_target(str(run)))


def test_a_whole_model_has_nothing_to_merge(base_dir):
    with pytest.raises(RecipeError, match="whole model already"):
        check_mergeable(find_target(str(base_dir)))


def test_a_folder_in_use_is_left_alone(run, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(PlaceError, match=r"(?s)not empty.*Another folder"):
        write_merged(load(run), tmp_path, torch.float32, PROMPTS, sync=sync_tree)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(PlaceError, match=r"takes 1048576.0 GiB and the disk has"):
        check_room(tmp_path / "merged", 2**50)
    assert not (tmp_path / "merged").exists()


def test_a_weight_that_float16_cannot_hold_is_refused_and_nothing_kept(base_dir, tmp_path):
    run = write_run(tmp_path / "run", base_dir, adapter={"method": "lora", "lora_alpha": 100_000_000})
    with pytest.raises(PlaceError, match=r"(?s)beyond what float16 can hold.*--dtype bfloat16"):
        write_merged(load(run), tmp_path / "merged", torch.float16, PROMPTS, sync=sync_tree)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_stop_half_way_leaves_no_folder(run, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "compare_logits", stop)
    with pytest.raises(KeyboardInterrupt):
        write_merged(load(run), tmp_path / "merged", torch.float32, PROMPTS, sync=sync_tree)
    assert not list(tmp_path.iterdir())


def test_logits_are_compared_by_largest_difference_divergence_and_likeliest_token():
    found = compare_logits([torch.tensor([[0.0, 0.0], [2.0, 0.0]])], [torch.tensor([[0.0, 0.0], [0.0, 1.0]])])
    p, q = torch.tensor([2.0, 0.0]).softmax(-1), torch.tensor([0.0, 1.0]).softmax(-1)
    assert found.num_tokens == 2
    assert found.max_abs == 2.0
    assert found.mean_kl_nats == pytest.approx(float((p * (p / q).log()).sum()) / 2, abs=1e-6)
    assert found.greedy_agreement_fraction == 0.5


def test_an_adapter_from_elsewhere_is_merged_into_an_unquantized_base(run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    speaker = load_for_inference(str(tmp_path / "adapter"))
    assert speaker.base.quantization == "none"
    expected = to_logits(speaker.model, PROMPTS)
    merged = merge_adapter(speaker, speaker.base.compute_dtype)
    assert compare_logits(expected, to_logits(merged, PROMPTS)).greedy_agreement_fraction > 0.9
