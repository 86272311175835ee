"""A saved reward model scores as the trained one did, and a head of random numbers is never taken for it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig, set_seed

from finetune.errors import PlaceError, RecipeError
from finetune.model.adapters import attach_adapter, check_adapter
from finetune.model.base import check_base, load_base
from finetune.model.heads import ScoreHead
from finetune.model.loading import load_for_inference
from finetune.model.scoring import load_scorer
from finetune.model.targets import ADAPTER_WEIGHTS
from finetune.model.tokenizer import find_pad_id, load_tokenizer
from finetune.recipe.reading import build_recipe, to_resolved
from finetune.recipe.schema import AdapterSettings, ModelSettings
from tests.model.saved_runs import write_base, write_run
from tests.model.tiny_models import SHAPE

HEAD = "base_model.model.score.weight"
ROWS = [[20, 21, 22], [30, 31, 32, 33, 34, 35], [40], [50, 51]]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base")


def settings_of(base_dir: Path, **fields: object) -> ModelSettings:
    typed = {"model_name_or_path": str(base_dir), "quantization": "nf4", "compute_dtype": "float32", "device": "cpu"}
    return ModelSettings(**(typed | fields))


def write_reward_run(run_dir: Path, base_dir: Path, **fields: object) -> tuple[Path, list[float]]:
    """Write a reward model whose weights random numbers moved away from their start; gives its scores of `ROWS` too."""
    settings = settings_of(base_dir, **fields)
    recipe = build_recipe(
        {
            "name": run_dir.name,
            "objective": "reward",
            "model": settings.model_dump(),
            "adapter": {"method": "lora", "r": 4},
            "data": {"train": {"path": "rows.jsonl"}, "template": "alpaca", "max_length": 64},
            "training": {"gradient_checkpointing": False},
        }
    )
    base = load_base(settings, head="score")
    model = attach_adapter(base, recipe.adapter, recipe.seed)
    assert isinstance(model, PeftModel)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    tokenizer = load_tokenizer(settings)
    model.save_pretrained(run_dir / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(run_dir / "adapter")
    (run_dir / "resolved.json").write_text(json.dumps(to_resolved(recipe)))
    model.config.pad_token_id = find_pad_id(tokenizer)
    with torch.no_grad(), torch.autocast("cpu", dtype=base.compute_dtype, enabled=base.compute_dtype != torch.float32):
        scores = [model(input_ids=torch.tensor([row])).logits.item() for row in ROWS]
    return run_dir, scores


@pytest.fixture(scope="module")
def run_and_scores(tmp_path_factory, base_dir) -> tuple[Path, list[float]]:
    return write_reward_run(tmp_path_factory.mktemp("runs") / "judge", base_dir)


@pytest.fixture
def copy_of_adapter(run_and_scores, tmp_path) -> Path:
    """The adapter's folder alone, to be spoiled."""
    return shutil.copytree(run_and_scores[0] / "adapter", tmp_path / "copy")


@pytest.mark.parametrize(("compute_dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_saved_reward_model_scores_as_it_did_whatever_the_batches(
    base_dir, tmp_path, quantization, compute_dtype, tolerance
):
    run_dir, expected = write_reward_run(
        tmp_path / "judge", base_dir, quantization=quantization, compute_dtype=compute_dtype
    )
    set_seed(99)  # what a random head would be drawn by
    scorer = load_scorer(str(run_dir), device="cpu")
    for batch_size in (1, 2, 4):
        assert scorer.score(ROWS, batch_size=batch_size) == pytest.approx(expected, abs=tolerance)
    assert len(set(expected)) == len(ROWS)
    assert scorer.score([]) == []


def test_the_adapters_folder_is_enough_and_apart_from_its_run_the_base_is_held_as_elsewhere(
    run_and_scores, copy_of_adapter
):
    run_dir, expected = run_and_scores
    assert load_scorer(str(run_dir / "adapter"), device="cpu").score(ROWS) == pytest.approx(expected, abs=1e-5)
    alone = load_scorer(str(copy_of_adapter), device="cpu")
    assert alone.base.quantization == "none"  # nobody says nf4
    assert alone.score(ROWS) == pytest.approx(expected, abs=0.5)


def test_peft_alone_gives_the_same_scores(tmp_path, base_dir):
    run_dir, expected = write_reward_run(tmp_path / "judge", base_dir, quantization="none")
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        run_dir / "adapter", num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = find_pad_id(load_tokenizer(settings_of(base_dir)))
    with torch.no_grad():
        scores = [model(input_ids=torch.tensor([row])).logits.item() for row in ROWS]
    assert scores == pytest.approx(expected, abs=1e-5)


def test_an_adapter_without_its_head_is_refused_instead_of_scoring_at_random(copy_of_adapter):
    tensors = load_file(copy_of_adapter / ADAPTER_WEIGHTS)
    del tensors[HEAD]
    save_file(tensors, copy_of_adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    with pytest.raises(PlaceError, match=r"holds no score.weight: its scores would be those of a random head"):
        load_scorer(str(copy_of_adapter), device="cpu")


def test_a_head_of_several_numbers_is_no_reward_model(copy_of_adapter):
    tensors = load_file(copy_of_adapter / ADAPTER_WEIGHTS)
    tensors[HEAD] = tensors[HEAD].repeat(2, 1)
    save_file(tensors, copy_of_adapter / ADAPTER_WEIGHTS, {"format": "pt"})
    with pytest.raises(RecipeError, match="it gives labels and no scores"):
        load_scorer(str(copy_of_adapter), device="cpu")


def test_an_adapter_that_talks_is_no_reward_model(base_dir, tmp_path):
    run_dir = write_run(tmp_path / "speaker", base_dir)
    for target in (run_dir, run_dir / "adapter", base_dir):
        with pytest.raises(RecipeError, match="is no reward model: it gives answers and no scores"):
            load_scorer(str(target), device="cpu")


def test_a_reward_model_is_not_talked_to_but_its_base_is(run_and_scores):
    run_dir, _ = run_and_scores
    for target in (run_dir, run_dir / "adapter"):
        with pytest.raises(RecipeError, match=r"is a reward model: it scores answers and gives none.\n.*--base"):
            load_for_inference(str(target), device="cpu")
        assert load_for_inference(str(target), base_only=True, device="cpu").base.head == "words"


def test_a_whole_model_that_scores_is_opened_with_its_own_head(base_dir, tmp_path):
    base = load_base(settings_of(base_dir, quantization="none"), head="score", seed=5)
    base.model.save_pretrained(tmp_path / "whole")
    load_tokenizer(settings_of(base_dir)).save_pretrained(tmp_path / "whole")
    scorer = load_scorer(str(tmp_path / "whole"), device="cpu")
    heads = [model.get_submodule("score").weight for model in (scorer.model, base.model)]
    torch.testing.assert_close(*heads, atol=0, rtol=2**-8)  # on a CPU that computes in bfloat16, read so
    with pytest.raises(RecipeError, match="is a reward model") as refusal:
        load_for_inference(str(tmp_path / "whole"), device="cpu")
    assert "--base" not in str(refusal.value)

    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    with pytest.raises(PlaceError, match=r"lack 1 of the model's tensors, the first score.weight"):
        load_scorer(str(tmp_path / "whole"), device="cpu")


# ---- the head on its base


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_the_head_is_whole_and_float32_on_any_base(base_dir, quantization):
    base = load_base(settings_of(base_dir, quantization=quantization, compute_dtype="bfloat16"), head="score")
    head = base.model.get_submodule("score")
    assert isinstance(head, ScoreHead)
    assert head.weight.dtype == torch.float32
    assert head.weight.shape == (1, 64)
    with torch.no_grad():
        assert base.model(input_ids=torch.tensor([ROWS[0]])).logits.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("skipped", [None, ["lm_head"]])
def test_a_base_that_was_saved_in_4_bits_gets_a_whole_head(base_dir, tmp_path, skipped):
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=skipped
    )
    AutoModelForCausalLM.from_pretrained(base_dir, quantization_config=bits).save_pretrained(tmp_path)
    assert isinstance(load_base(settings_of(tmp_path), head="score").model.get_submodule("score"), ScoreHead)


def test_the_seed_draws_the_head_and_the_callers_numbers_stay(base_dir):
    def draw(seed: int, **fields: object) -> torch.Tensor:
        return load_base(settings_of(base_dir, **fields), head="score", seed=seed).model.get_submodule("score").weight

    assert torch.equal(draw(1), draw(1, quantization="none"))
    assert not torch.equal(draw(1), draw(2))


def test_a_base_of_random_weights_has_the_same_body_whatever_it_ends_with():
    settings = ModelSettings(weights="random", config=SHAPE, quantization="nf4", compute_dtype="float32", device="cpu")
    words, scores = (load_base(settings, seed=3, head=head).model for head in ("words", "score"))
    tokens = torch.tensor([ROWS[0]])
    with torch.no_grad():
        assert torch.equal(words.model(tokens).last_hidden_state, scores.model(tokens).last_hidden_state)
    assert isinstance(scores.score, ScoreHead)


@pytest.mark.parametrize("model_type", ["bert", "granite"])
def test_an_architecture_without_such_a_head_is_refused_before_a_weight_is_read(model_type):
    settings = ModelSettings(weights="random", config={"model_type": model_type}, quantization="none", device="cpu")
    with pytest.raises(RecipeError, match=r"`model.config` cannot become a reward model"):
        check_base(settings, head="score")
    check_base(settings)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "gemma2"])
def test_the_usual_architectures_have_such_a_head(model_type):
    settings = ModelSettings(weights="random", config={"model_type": model_type}, quantization="none", device="cpu")
    check_base(settings, head="score")


# ---- the adapter beside it


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "trainable_tokens", "adaption_prompt"])
def test_methods_that_would_lose_the_head_are_refused(method):
    with pytest.raises(RecipeError, match=f"`adapter.method: {method}` does not go with a reward model"):
        check_adapter(AdapterSettings(method=method), head="score")


@pytest.mark.parametrize("fields", [{"method": "lora"}, {"method": "ia3"}, {"method": "lora", "use_dora": True}])
def test_the_head_is_trained_and_never_adapted(base_dir, fields):
    model = attach_adapter(load_base(settings_of(base_dir), head="score"), AdapterSettings(**fields), seed=1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".score." in name} == {"base_model.model.score.modules_to_save.default.weight"}
    assert len(trained) > 1


def test_the_recipes_own_modules_to_save_stay_as_typed(base_dir):
    adapter = AdapterSettings(method="lora", modules_to_save=["norm"])
    model = attach_adapter(load_base(settings_of(base_dir), head="score"), adapter, seed=1)
    assert adapter.fields["modules_to_save"] == ["norm"]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.endswith("model.norm.modules_to_save.default.weight") for name in trained)


def test_transformers_alone_puts_a_random_head_on_the_adapters_folder(run_and_scores, base_dir):
    run_dir, expected = run_and_scores
    set_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "adapter", num_labels=1)
    with torch.no_grad():
        scores = [model(input_ids=torch.tensor([row])).logits.item() for row in ROWS]
    assert scores != pytest.approx(expected, abs=0.05)  # docs/reward.md says so, and what to use instead
