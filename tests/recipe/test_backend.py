"""What Unsloth cannot train is refused while the recipe is read: with its line, the way out, and nothing loaded."""

from pathlib import Path

import pytest

from finetune.recipe.backend_limits import (
    UNSLOTH_LORA_FIELDS,
    UNSLOTH_LORA_STARTS,
    UNSLOTH_OBJECTIVES,
    find_unserved_lora_fields,
)
from finetune.recipe.catalogue import TRAINER_CONFIGS, read_catalogue
from finetune.recipe.reading import build_recipe, read_recipe, to_resolved
from tests.recipe.told import Write, message_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if not path.stem.startswith("compare_"))
BY_UNSLOTH, BY_TRANSFORMERS = "model.backend=unsloth", "model.backend=transformers"

GOOD = """\
name: small
objective: sft
model:
  model_name_or_path: org/base
  backend: unsloth
  quantization: nf4
  double_quantization: true
  attention: auto
adapter:
  method: lora
  r: 8
data:
  train: {path: rows.jsonl}
training:
  max_steps: 10
"""
# The shortest recipe of each objective needs these beside GOOD.
BESIDE = {
    "pretrain": ["data.train.format=text"],
    "rloo": ["rewards=[{function: json}]"],
    "grpo": ["rewards=[{function: json}]"],
}


ABLE = "It trains sft, pretrain, dpo, kto, orpo, grpo."
FAULTS = [
    # a line of GOOD, what was typed in its place, the fault's line, the message and the way out
    ("objective: sft", "objective: reward", 5, "does not train `objective: reward`.", ABLE),
    ("objective: sft", "objective: rloo\nrewards: [{function: json}]", 6, "not train `objective: rloo`.", ABLE),
    *(("quantization: nf4", f"quantization: {held}", 6,
       f"holds a base in nf4 or not quantized, and `quantization` is {held}.", "Set quantization: nf4.")
      for held in ("int8", "fp4")),
    ("double_quantization: true", "double_quantization: false", 7,
     "always quantizes the 4-bit blocks' own scales, and `double_quantization` is false.",
     "Set double_quantization: true."),
    ("model_name_or_path: org/base", "weights: random\n  config: {model_type: llama}", 4,
     "loads weights from files, and `weights` is random.", "Set weights: pretrained."),
    *(("attention: auto", f"attention: {kernel}", 8,
       f"attends with kernels of its own choice, and `attention` is {kernel}.", "Set attention: auto.")
      for kernel in ("sdpa", "eager", "flash_attention_2")),
    *((("method: lora", f"method: {method}", 10, f"trains LoRA alone, and `method` is {method}.", "Set method: lora."))
      for method in ("vera", "adalora", "hira")),
    *(("r: 8", typed, 11, f"has no kernels for `adapter.{typed.split(':')[0]}`.", "Take the line out.")
      for typed in ("use_dora: true", "bias: lora_only", "rank_pattern: {q_proj: 4}", "alpha_pattern: {q_proj: 4}",
                    "modules_to_save: [lm_head]", "exclude_modules: [lm_head]", "lora_bias: true",
                    "layer_replication: [[0, 2]]", "trainable_token_indices: [5]", "target_parameters: [a.weight]",
                    "velora_config: {num_groups: 8}", "runtime_config: {ephemeral_gpu_offload: true}")),
    *(("r: 8", f"target_modules: [q_proj, {name}]", 11, f"puts no LoRA on {name}; it would train all of its weights",
       f"Leave out {name}.") for name in ("embed_tokens", "lm_head")),
    ("r: 8", "target_modules: '.*(q_proj|embed_tokens)'", 11, "puts no LoRA on embed_tokens;",
     "Leave out embed_tokens."),
    ("max_steps: 10", "loss_type: dft", 15, "computes the loss nll itself, and `loss_type` is dft.", "the line out."),
    *(("max_steps: 10", f"{switch}: true", 15, f"and `training.{switch}` would put others in their place.", "line out.")
      for switch in ("use_liger_kernel", "torch_compile", "activation_offloading")),
]  # fmt: skip


@pytest.mark.parametrize(("line", "typed", "number", "what", "advice"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_what_unsloth_cannot_train_is_told_with_its_line_and_both_ways_out(
    write: Write, line: str, typed: str, number: int, what: str, advice: str
) -> None:
    text = GOOD.replace(line, typed, 1)
    told = message_of(write(text)).splitlines()
    assert len(told) == 3, "one fault, what to change, and the other library"
    assert told[0].startswith(f"r.yaml:{number}: `backend: unsloth` ")
    assert what in told[0]
    assert advice in told[1]
    assert told[2] == "  Or take the other backend: transformers."
    others = ["training.loss_type=nll"] if "lm_head]" in text and "target_modules" in text else []
    read_recipe(write(text), [BY_TRANSFORMERS, *others])  # the way out that is told is one


@pytest.mark.parametrize("start", ["mica", "orthogonal"])
def test_a_start_that_unsloth_does_not_make_is_told_with_those_it_does(write: Write, start: str) -> None:
    path = write(GOOD.replace("r: 8", f"init_lora_weights: {start}").replace("nf4", "none"))
    told = message_of(path).splitlines()
    assert told[0] == f"r.yaml:11: `backend: unsloth` does not make the start `init_lora_weights: {start}`."
    assert told[1] == "  It makes true, false, gaussian, loftq, olora, pissa."
    assert len(told) == 3


def test_full_fine_tuning_is_refused_without_a_detour_over_the_adapters_other_lines(write: Write) -> None:
    text = GOOD.replace("method: lora\n  r: 8", "method: full").replace("nf4", "none")
    told = message_of(write(text)).splitlines()
    assert told[0] == "r.yaml:10: `backend: unsloth` trains LoRA alone, and `method` is full."
    assert len(told) == 3


def test_plain_text_has_no_loss_of_another_kind_either(write: Write) -> None:
    path = write(GOOD.replace("objective: sft", "objective: pretrain").replace("max_steps: 10", "loss_type: dft"))
    assert "computes the loss nll itself" in message_of(path, *BESIDE["pretrain"])


def test_a_backend_from_the_command_line_is_held_against_the_file_it_is_put_over(write: Write) -> None:
    path = write(GOOD.replace("backend: unsloth\n  ", "").replace("quantization: nf4", "quantization: int8"))
    read_recipe(path)
    assert message_of(path, BY_UNSLOTH).startswith("r.yaml:5: `backend: unsloth` holds a base in nf4")


def test_all_that_stands_against_unsloth_is_told_at_once(write: Write) -> None:
    text = GOOD.replace("quantization: nf4", "quantization: int8").replace("auto", "sdpa").replace("lora", "vera")
    places = [line.split(": ")[0] for line in message_of(write(text)).splitlines() if not line.startswith(" ")]
    assert places == ["r.yaml:6", "r.yaml:8", "r.yaml:10"]


@pytest.mark.parametrize(
    "adapter",
    [
        {"bias": "none"},
        {"use_dora": False, "lora_bias": False, "fan_in_fan_out": False},
        {"rank_pattern": {}, "alpha_pattern": {}, "runtime_config": {}},
        {"modules_to_save": None, "exclude_modules": None, "layer_replication": None, "eva_config": None},
        {"modules_to_save": [], "exclude_modules": []},
    ],
    ids=str,
)
def test_a_setting_that_is_off_is_no_fault(adapter: dict[str, object]) -> None:
    values = {
        "name": "small",
        "model": {"model_name_or_path": "org/base", "backend": "unsloth"},
        "adapter": {"method": "lora"} | adapter,
        "data": {"train": {"path": "rows.jsonl"}},
    }
    assert build_recipe(values).adapter.fields == adapter


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter={method: lora, lora_dropout: 0.1, target_modules: [q_proj, v_proj], use_rslora: true}"],
        ["adapter={method: lora, layers_to_transform: [0, 1], layers_pattern: layers}"],
        ["adapter={method: lora, init_lora_weights: loftq, loftq_config: {loftq_iter: 2}}"],
        *([f"adapter.init_lora_weights={start}"]
          for start in ("true", "false", "gaussian", "olora", "pissa", "pissa_niter_16")),
        ["adapter={init_from: outputs/other}"],
        ["model.quantization=none", "model.double_quantization=false"],
        ["training.loss_type=nll", "training.use_liger_kernel=false", "training.torch_compile=false"],
        ["training.gradient_checkpointing=false", "data.packing=false"],
        ["training.optim=paged_adamw_8bit", "training.neftune_noise_alpha=5"],
        ["objective=dpo", "training.loss_type=ipo"],
        ["objective=kto", "training.loss_type=apo_zero_unpaired"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_unsloth_can_train_is_taken(write: Write, overrides: list[str]) -> None:
    assert read_recipe(write(GOOD), overrides).model.backend == "unsloth"


@pytest.mark.parametrize("objective", UNSLOTH_OBJECTIVES)
def test_a_resolved_recipe_with_every_default_filled_in_is_read_again(write: Write, objective: str) -> None:
    text = GOOD.replace("objective: sft", f"objective: {objective}").replace("  double_quantization: true\n", "")
    recipe = read_recipe(write(text.replace("  attention: auto\n", "")), BESIDE.get(objective, []))
    resolved = to_resolved(recipe)
    assert resolved["model"]["double_quantization"] is True
    assert resolved["model"]["attention"] == "auto"
    assert build_recipe(resolved) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_ours_changes_the_backend_with_one_word_or_is_told_why_not(path: Path) -> None:
    here = read_recipe(path, [BY_TRANSFORMERS])
    fits = here.objective in UNSLOTH_OBJECTIVES and here.adapter.method == "lora" and here.model.weights != "random"
    if not fits:
        assert "`backend: unsloth` " in message_of(path, BY_UNSLOTH)
        return
    there = read_recipe(path, [BY_UNSLOTH])
    assert there.model.backend == "unsloth"
    assert there.model_copy(update={"model": here.model}) == here, "nothing else changed"


def test_of_every_objective_with_lora_that_unsloth_trains_there_is_a_recipe_to_switch() -> None:
    recipes = [read_recipe(path, [BY_TRANSFORMERS]) for path in RECIPES]
    assert {recipe.objective for recipe in recipes if recipe.adapter.method == "lora"} >= set(UNSLOTH_OBJECTIVES)


def test_what_unsloth_is_handed_is_named_as_peft_and_trl_name_it() -> None:
    lora = read_catalogue().methods["lora"]
    assert set(UNSLOTH_LORA_FIELDS) <= lora.keys()
    starts = {name for schema in lora["init_lora_weights"]["anyOf"] for name in schema.get("enum", ())}
    assert set(UNSLOTH_LORA_STARTS) <= starts
    assert set(UNSLOTH_OBJECTIVES) <= TRAINER_CONFIGS.keys()


def test_an_adapter_on_the_head_is_refused_with_the_loss_that_computes_around_it(write: Write) -> None:
    path = write(GOOD.replace("r: 8", "target_modules: [q_proj, lm_head]"))
    told = message_of(path, BY_TRANSFORMERS).splitlines()
    assert told[0].startswith("r.yaml:11: `target_modules` has lm_head, and the loss chunked_nll")
    read_recipe(path, [BY_TRANSFORMERS, "training.loss_type=nll"])
    read_recipe(path, [BY_TRANSFORMERS, "objective=dpo"])


def test_a_saved_adapter_is_plain_lora_where_its_config_is_what_peft_writes_for_one() -> None:
    saved = {
        "peft_type": "LORA", "peft_version": "0.21.2", "base_model_name_or_path": "org/base", "revision": "0" * 40,
        "task_type": "CAUSAL_LM", "inference_mode": True, "r": 64, "lora_alpha": 128, "target_modules": ["q_proj"],
        "bias": "none", "use_dora": False, "rank_pattern": {}, "megatron_core": "megatron.core",
        "qalora_group_size": 16, "auto_mapping": None, "a_field_of_a_later_peft": 3,
    }  # fmt: skip
    assert find_unserved_lora_fields(saved) == []
    assert find_unserved_lora_fields(saved | {"use_dora": True, "rank_pattern": {"q_proj": 4}}) == [
        "rank_pattern",
        "use_dora",
    ]


def test_the_recipe_for_unsloth_is_the_other_one_with_another_backend() -> None:
    here, there = (read_recipe(ROOT / "recipes" / f"mistral_alpaca{name}.yaml") for name in ("", "_unsloth"))
    moved = here.model_copy(update={"name": there.name, "model": here.model.model_copy(update={"backend": "unsloth"})})
    assert moved == there


def test_grpo_on_a_gpu_that_is_asked_for_is_refused_as_the_recipe_is_read(write: Write) -> None:
    text = GOOD.replace("objective: sft", "objective: grpo\nrewards: [{function: json}]")
    told = message_of(write(text), "model.device=cuda")
    assert told.startswith("r.yaml:6: `backend: unsloth` trains grpo on a GPU with a rewritten trainer")
    read_recipe(write(text), ["model.device=cpu"])
