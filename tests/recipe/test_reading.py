"""A recipe is read strictly: every fault at once, with its line and what to type."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.comparison.cells import build_cells, build_points
from finetune.errors import RecipeError
from finetune.recipe.catalogue import UNTRAINABLE_METHODS
from finetune.recipe.comparison import read_comparison
from finetune.recipe.reading import build_recipe, read_recipe, read_recipe_with_notices, to_resolved
from tests.recipe.told import Write, message_of

RECIPES = Path(__file__).parents[2] / "recipes"
COMPARISONS = sorted(RECIPES.glob("compare_*.yaml"))
RUN_RECIPES = sorted(set(RECIPES.glob("*.yaml")) - set(COMPARISONS))

GOOD = """\
name: small
seed: 1
model:
  model_name_or_path: org/base
  quantization: nf4
adapter:
  method: lora
  r: 8
  lora_alpha: 16
data:
  train: {path: org/rows, format: alpaca, split: train, revision: main}
  eval: {fraction: 0.1}
  packing: true
training:
  max_steps: 10
  learning_rate: 2e-4
  eval_steps: 5
"""


def test_a_good_recipe_keeps_what_was_typed(write: Write) -> None:
    recipe = read_recipe(write(GOOD))
    assert recipe.training.learning_rate == 2e-4
    assert recipe.adapter.fields == {"r": 8, "lora_alpha": 16}
    assert recipe.training.save_steps == 200


FAULTS = [
    # what was typed in place of a line of GOOD, its line, the message and the advice
    ("lora_alpha: 16", "lora_alpa: 16", 9, "`adapter` has no setting `lora_alpa`.", "Did you mean `lora_alpha`?"),
    ("model:\n", "modle:\n", 3, "a recipe has no setting `modle`.", "Did you mean `model`?"),
    ("seed: 1", "sed: 1", 2, "a recipe has no setting `sed`.", "Did you mean `seed`?"),
    ("r: 8", "learning_rate: 1e-3", 8, "`adapter` has no setting `learning_rate`.", "It belongs under `training`"),
    ("r: 8", "lora_rank: 8", 8, "`adapter` has no setting `lora_rank`.", "Here it is `adapter.r`."),
    ("seed: 1", "base_model: x", 2, "a recipe has no setting `base_model`.", "Here it is `model.model_name_or_path`."),
    ("packing: true", "cutoff_len: 512", 13, "`data` has no setting `cutoff_len`.", "Here it is `data.max_length`."),
    ("max_steps: 10", "num_epochs: 3", 15, "`training` has no setting `num_epochs`.", "`training.num_train_epochs`"),
    ("max_steps: 10", "output_dir: x", 15, "`training` has no setting `output_dir`.", "Here it is `output_dir`, at"),
    ("max_steps: 10", "hub_token: x", 15, "`training` has no setting `hub_token`.", "A recipe holds no secrets"),
    ("r: 8", "task_type: CAUSAL_LM", 8, "`adapter` has no setting `task_type`.", "Here it is `objective`"),
    ("quantization: nf4", "quantization: nf5", 5, "`model.quantization` cannot be the text `nf5`.", "mean `nf4`?"),
    ("method: lora", "method: lorra", 7, "`adapter.method` cannot be the text `lorra`.", "Did you mean `lora`"),
    ("max_steps: 10", "optim: adamw_8bits", 15, "`training.optim` cannot be the text `adamw_8bits`.", "`adamw_8bit`"),
    ("seed: 1", "seed: 1_000", 2, "`seed` wants a whole number; found the text `1_000`.", "Write 1000."),
    ("seed: 1", "seed: 1e3", 2, "`seed` wants a whole number; found `1000.0`.", "Write 1000."),
    ("packing: true", "packing: yes", 13, "`data.packing` wants true or false; found the text `yes`.", "Write true."),
    ("2e-4", "'2e-4'", 16, "`training.learning_rate` wants a number; found the text `2e-4`.", "Without the quotes"),
    ("2e-4", "0", 16, "`training.learning_rate` is 0; it must be above 0.", "Peak learning rate"),
    ("name: small", "name: ../small", 1, "`name` cannot be `../small`.", "Name of the run and of its folder"),
    ("name: small", "name: 2026", 1, "`name` wants a text; found `2026`.", 'In quotes it is a text: "2026".'),
    ("{path: org/rows, format: alpaca, split: train, revision: main}", "org/rows", 11,
     "`data.train` wants a group of settings or a list in [ ]; found the text `org/rows`.", "Write {path: org/rows}."),
    ("r: 8", "r: [8]", 8, "`adapter.r` wants a whole number; found a list.", ""),
    ("r: 8", "init_lora_weights: pisa", 8, "`adapter.init_lora_weights` cannot be the text `pisa`.", "`pissa`?"),
    ("model:", "model: null\nx:", 3, "`model` wants a group of settings; found nothing (null).", "Leave the line out"),
    ("seed: 1", "name: twice", 2, "`name` is set twice; the first time at r.yaml:1.", "Keep one of the two."),
    ("method: lora", "method: ia3", 8, "`adapter` has no setting `r`.", "the method here is ia3."),
]  # fmt: skip


@pytest.mark.parametrize(("line", "typed", "number", "what", "advice"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_a_fault_is_told_with_file_line_and_what_to_type(
    write: Write, line: str, typed: str, number: int, what: str, advice: str
) -> None:
    message = message_of(write(GOOD.replace(line, typed, 1)))
    assert f"r.yaml:{number}: {what}" in message
    assert advice in message
    assert len(message.splitlines()) <= 15


CONFLICTS = [
    (["adapter={method: full}"], "`method: full` trains every weight"),
    (["adapter={method: loha}"], "`method: loha` cannot sit on a base in nf4"),
    (["adapter={method: loha}", "model.quantization=int8"], "`method: loha` cannot sit on a base in int8"),
    (["adapter={method: prompt_tuning, num_virtual_tokens: 4}"], "cannot be trained on packed rows"),
    (
        ["adapter={method: prefix_tuning}", "data.packing=false", "training.gradient_checkpointing=true"],
        "gradient checkpointing exclude each other",
    ),
    (["adapter={method: lora, kasa_config: {}}"], "so its adapter fits no other copy of it."),
    (["adapter.use_dora=true", "model.quantization=int8"], "after one PEFT 0.21 can no longer read int8."),
    *(([f"adapter.init_lora_weights={start}"], f"`init_lora_weights: {start}` wants a pass over the data")
      for start in ("eva", "corda", "lora_ga")),
    (["adapter.eva_config={rho: 1.5}"], "`init_lora_weights: eva` wants a pass over the data"),
    *(([f"adapter.init_lora_weights={start}", f"model.quantization={held}"], f"{start}` reads 16-bit weights")
      for start in ("mica", "orthogonal") for held in ("nf4", "int8")),
    (["adapter.init_lora_weights=loftq", "model.quantization=int8"], "`model.quantization` is int8, `model.weights`"),
    (["adapter.init_lora_weights=loftq", "model.weights=random"], "`model.weights` random."),
    (["training.early_stopping_patience=2", "data.eval=null"], "which need `data.eval`."),
    (["training.early_stopping_patience=2", "training.eval_steps="], "which need `training.eval_steps`."),
    (["training.eval_steps=2.5"], "`training.eval_steps` is 2.5; above 1 it is a number of whole steps."),
    (["training.save_steps=1.5"], "`training.save_steps` is 1.5; above 1 it is a number of whole steps."),
    (["training.optim=lomo"], "`optim: lomo` changes weights within the backward pass, before a step can be checked"),
    (["training.optim=galore_adamw_layerwise"], "e.g. training.optim=galore_adamw"),
    (["training.fsdp=full_shard"], "Each process holds the whole model"),
    (["training.deepspeed=ds.json"], "Each process holds the whole model"),
    (["training.warmup_steps=10.5"], "`training.warmup_steps` is 10.5; above 1 it is a number of whole steps."),
    (["training.max_steps=0"], "`training.max_steps` is 0; it must be at least 1, or -1"),
    (["training.eval_on_start=true", "data.eval=null"], "`eval_on_start` evaluates before the first step"),
    (["training.lr_scheduler_type=greedy", "training.eval_steps=null"], "greedy goes by the evaluations, which need"),
    (["training.lr_scheduler_type=reduce_lr_on_plateau", "data.eval=null"], "which need `data.eval`."),
    (["training.lr_scheduler_type=cosine_with_min_lr"], "needs one of min_lr, min_lr_rate in `lr_scheduler_kwargs`."),
    (["training.lr_scheduler_type=cosine_warmup_with_min_lr",
      "training.lr_scheduler_kwargs={min_lr: 1e-5, min_lr_rate: 0.1}"], "needs one of min_lr, min_lr_rate in"),
    (["training.lr_scheduler_type=warmup_stable_decay"], "needs `num_decay_steps` in `lr_scheduler_kwargs`."),
    (["training.lr_scheduler_kwargs={num_cycle: 2}"], "the schedule cosine has no `num_cycle`."),
    (["training.lr_scheduler_kwargs=min_lr"], "wants a group of settings; found a text."),
    (["training.loss_type=nlll"], "`training.loss_type` cannot be the text `nlll`."),
    (["training.label_smoothing_factor=0.1"], "works with `loss_type: nll` alone, and without the Liger kernels."),
    (["training.label_smoothing_factor=0.1", "training.loss_type=dft"], "works with `loss_type: nll` alone"),
    (["training.label_smoothing_factor=0.1", "training.loss_type=nll", "training.use_liger_kernel=true"],
     "without the Liger kernels."),
    (["training.loss_type=chunked_nll", "training.use_liger_kernel=true"], "exclude each other"),
    (["data.train.weight=2"], "`data.train.weight` is a share in a mix, and this is the only source."),
    (["data.train.weight=1"], "`data.train.weight` is a share in a mix"),
    (["data.eval={path: a.json, weight: 2}"], "`data.eval.weight` is a share in a mix"),
    (["evaluation.questions={path: a.json, weight: 2}"], "`evaluation.questions.weight` is a share in a mix"),
    (["model={weights: random}"], "`weights: random` needs a shape to fill."),
    (["model={}"], "`model.model_name_or_path` is missing."),
    (["model.config={model_type: llama}"], "is read with `weights: random` alone"),
    (["model.trust_remote_code=true", "model.revision=main"], "needs `revision` pinned to a commit; found `main`."),
    (["objective=pretrain", "data.train.format=text", "data.train_on=answers"], "trains on every token of a text."),
    (["objective=pretrain", "data.train.format=text", "data.template=alpaca"], "which no template is put around."),
    (["objective=pretrain"], "`format: alpaca` holds conversations."),
    (["data.train.format=text"], "`objective: sft` reads conversations; `format: text` holds plain text."),
    (["data.too_long=split"], "would tear a conversation"),
    (["data.eval.path=x.json"], "either a fraction of the training rows or a source of its own, not both."),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "what"), CONFLICTS, ids=[" ".join(conflict[0]) for conflict in CONFLICTS])
def test_settings_that_exclude_each_other_are_told(write: Write, overrides: list[str], what: str) -> None:
    message = message_of(write(GOOD), *overrides)
    assert what in message
    assert len(message.splitlines()) <= 3


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter={method: full}", "model.quantization=none"],
        ["adapter={method: loha}", "model.quantization=none"],
        ["adapter={method: ln_tuning}"],
        ["adapter={method: prompt_tuning, num_virtual_tokens: 4}", "data.packing=false"],
        ["model={weights: random, config: {model_type: llama}}"],
        ["model.trust_remote_code=true", f"model.revision={'a1' * 20}"],
        ["objective=pretrain", "data.train.format=text", "data.train_on=everything"],
        ["adapter.init_lora_weights=pissa_niter_16"],
        ["adapter.velora_config={num_groups: 8}"],
        ["adapter.init_lora_weights=loftq"],
        ["adapter.init_lora_weights=mica", "model.quantization=none"],
        ["adapter.use_dora=true"],
        ["training.eval_steps=2.0", "training.save_steps=0.5", "training.warmup_steps=1"],
        ["training.max_steps=-1"],
        ["training.lr_scheduler_type=cosine_with_min_lr", "training.lr_scheduler_kwargs={min_lr_rate: 0.1}"],
        ["training.lr_scheduler_type=reduce_lr_on_plateau", "training.lr_scheduler_kwargs={patience: 3}"],
        ["training.label_smoothing_factor=0.1", "training.loss_type=nll"],
        ["training.label_smoothing_factor=0"],
        ["training.eval_on_start=true"],
        ["training.run_name=mine", "training.project=ours"],
        ["data.train=[{path: a.json, format: alpaca, weight: 2}, {path: b.json, format: alpaca}]"],
        ["adapter.target_modules=[q_proj, v_proj]"],
    ],
    ids=" ".join,
)
def test_settings_that_go_together_are_taken(write: Write, overrides: list[str]) -> None:
    read_recipe(write(GOOD), overrides)


@pytest.mark.parametrize("method", sorted(UNTRAINABLE_METHODS))
def test_a_method_that_rows_alone_cannot_train_is_told_with_its_line_and_the_reason(write: Write, method: str) -> None:
    message = message_of(write(GOOD.replace("method: lora", f"method: {method}")))
    reason = UNTRAINABLE_METHODS[method]
    assert message.splitlines()[0] == f"r.yaml:7: `method: {method}` cannot be trained from rows alone: {reason}."
    assert "Choose one of adalora, " in message


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("push_to_hub=true", "pushed with `hf upload"),
        ("hub_model_id=me/mine", "pushed with `hf upload"),
        ("include_num_input_tokens_seen=all", "always counted"),
        ("ignore_data_skip=true", "at the very row where it stopped"),
        ("restore_callback_states_from_checkpoint=false", "always takes them up again"),
        ("disable_tqdm=false", "a bar of its own"),
        ("metric_for_best_model=loss", "else the lowest loss"),
        ("greater_is_better=true", "a loss should fall"),
        ("logging_nan_inf_filter=true", "stops on one instead"),
        ("auto_find_batch_size=true", "`training.per_device_train_batch_size`"),
    ],
)
def test_a_field_of_the_trainer_that_we_decide_is_refused_with_the_reason(
    write: Write, field: str, reason: str
) -> None:
    message = message_of(write(GOOD), f"training.{field}")
    assert "`training` has no setting" in message
    assert reason in message


def test_all_faults_are_told_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = (
        GOOD.replace("seed: 1", "sed: 1").replace("lora_alpha", "lora_alpa").replace("max_steps: 10", "max_steps: ten")
    )
    message = message_of(write(text), "data.packin=true")
    places = [line.split(": ")[0] for line in message.splitlines() if not line.startswith(" ")]
    assert places == ["command line", "r.yaml:2", "r.yaml:9", "r.yaml:15"]


def test_many_faults_take_a_line_each_and_the_rest_is_counted(write: Write) -> None:
    message = message_of(write(GOOD + "".join(f"  bogus_{number}: 1\n" for number in range(40))))
    assert len(message.splitlines()) == 15
    assert message.splitlines()[-1] == "And 26 more; mend these first and run the command again."


def test_a_misspelled_section_is_not_also_told_as_missing(write: Write) -> None:
    assert "missing" not in message_of(write(GOOD.replace("model:", "modle:")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml: the recipe is empty."),
        (b"- a\n", "r.yaml:1: the recipe holds a list instead of settings."),
        (b"\x7fELF\x02\x01\xff\xfe", "r.yaml:1: the byte 0xFF is not UTF-8 text."),
        (b"a: 1\n" * 2_000_000, "r.yaml: this file is larger than 32 KiB; a recipe is a page or two."),
    ],
    ids=["empty", "list", "binary", "10 MB"],
)
def test_a_file_that_is_no_recipe_is_told(write: Write, content: bytes, message: str) -> None:
    path = write("")
    path.write_bytes(content)
    assert message_of(path).splitlines()[0] == message


def test_a_missing_recipe_names_the_nearest_one(write: Write) -> None:
    write(GOOD).rename("mistral.yaml")
    assert (
        message_of(Path("mistrl.yaml"))
        == "mistrl.yaml: there is no recipe `mistrl.yaml`.\n  Did you mean mistral.yaml?"
    )
    assert "there is no recipe" in message_of(Path("x" * 5000))


def test_a_byte_order_mark_and_crlf_are_read_over(write: Write) -> None:
    path = write("")
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read_recipe(path).name == "small"


def test_overrides_lie_over_the_file_by_the_same_rules(write: Write) -> None:
    recipe = read_recipe(
        write(GOOD),
        ["name=other", "training.learning_rate=1e-3", "training.optim=sgd", "evaluation.num_samples=0", "data.eval=~"],
    )
    assert (recipe.name, recipe.training.learning_rate) == ("other", 1e-3)
    assert recipe.training.fields == {"optim": "sgd"}
    assert (recipe.evaluation.num_samples, recipe.data.eval) == (0, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--lr", "command line: `--lr` is not `section.key=value`."),
        ("training.learning_rat=1", "command line: `training` has no setting `learning_rat`."),
        (
            "training.learning_rate=fast",
            "command line: `training.learning_rate` wants a number; found the text `fast`.",
        ),
        ("seed.x=1", "command line: `seed.x` cannot be set: `seed` is a single value in the recipe."),
        ("name=[a", "command line: `name=[a`: YAML cannot be read on from here: "),
        ("name=!!str a", "command line: the tag `!!str` is not taken."),
    ],
)
def test_an_override_that_cannot_be_is_told_as_the_command_line(write: Write, override: str, message: str) -> None:
    assert message_of(write(GOOD), override).splitlines()[0].startswith(message)


@pytest.mark.parametrize("group", ["data.eval={fraction: 0.1}", "adapter.target_modules=[q_proj, v_proj]"])
def test_a_group_that_the_shell_took_apart_is_told_once_with_the_quotes_that_keep_it_whole(
    write: Write, group: str
) -> None:
    first, *pieces = group.split(" ")
    told = message_of(write(GOOD), first, *pieces, "training.learning_rat=1")
    assert f"  Quote it for the shell: '{group}'." in told.splitlines()
    assert told.count("command line: ") == 2, "the group and the misspelled key, but not the group's other pieces"
    read_recipe(write(GOOD), [group])


def test_a_bracket_that_nothing_follows_was_not_closed(write: Write) -> None:
    assert "A quote or a bracket that was opened is not closed." in message_of(write(GOOD), "adapter.target_modules=[a")


def test_a_method_that_goes_without_checkpointing_switches_it_off_and_says_so(write: Write) -> None:
    prefixed = ["adapter={method: prefix_tuning, num_virtual_tokens: 4}", "data.packing=false"]
    reading = read_recipe_with_notices(write(GOOD), prefixed)
    assert reading.recipe.training.gradient_checkpointing is False
    assert any("training.gradient_checkpointing is false here" in notice for notice in reading.notices)
    plain = read_recipe_with_notices(write(GOOD))
    assert plain.recipe.training.gradient_checkpointing is True
    assert plain.notices == ()


def test_a_local_path_drops_what_means_something_on_the_hub_alone(write: Write) -> None:
    reading = read_recipe_with_notices(write(GOOD), ["data.train.path=rows.jsonl"])
    train = to_resolved(reading.recipe)["data"]["train"]
    assert (train["split"], train["revision"], train["format"]) == (None, None, "alpaca")
    assert reading.notices == (
        "data.train.path is local now: dropped the recipe's revision, split of the Hub dataset.",
    )


def test_a_local_path_drops_what_was_assumed_of_the_recipe_s_own_rows(write: Write) -> None:
    text = GOOD.replace("data:\n", "data:\n  assumed: {rows: 5, tokens_per_row: 7}\n", 1)
    reading = read_recipe_with_notices(write(text), ["data.train.path=rows.jsonl"])
    assert reading.recipe.data.assumed is None
    assert reading.notices[-1].endswith("dropped data.assumed, which is of the recipe's own rows.")
    for overrides in ([], ["data.train.path=org/others"], ["data.train.path=rows.jsonl", "data.assumed.rows=6"]):
        assert read_recipe_with_notices(write(text), overrides).recipe.data.assumed is not None


def test_another_hub_name_or_a_typed_split_drops_nothing(write: Write) -> None:
    reading = read_recipe_with_notices(write(GOOD), ["data.train.path=org/others"])
    assert to_resolved(reading.recipe)["data"]["train"]["split"] == "train"
    reading = read_recipe_with_notices(write(GOOD), ["data.train.path=./rows", "data.train.split=test"])
    assert to_resolved(reading.recipe)["data"]["train"]["split"] == "test"


def test_several_sources_are_checked_each(write: Write) -> None:
    sources = "[{path: a.json, weight: 2}, {path: b.json, wieght: 1}]"
    text = GOOD.replace("{path: org/rows, format: alpaca, split: train, revision: main}", sources)
    assert "r.yaml:11: `data.train[1]` has no setting `wieght`." in message_of(write(text))


@pytest.mark.parametrize("path", RUN_RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read_and_its_resolved_form_says_the_same(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert build_recipe(json.loads(json.dumps(to_resolved(recipe)))) == recipe


@pytest.mark.parametrize("path", RUN_RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_begins_with_its_command_hardware_and_sources(path: Path) -> None:
    head = [line for line in path.read_text().splitlines()[:20] if line.startswith("#")]
    assert head[0] == "# yaml-language-server: $schema=recipe.schema.json"
    objective = read_recipe(path).objective
    verb = "sft" if objective in ("pretrain", "mlm") else objective
    assert any(f"python -m finetune.{verb} recipes/{path.name}" in line for line in head)
    assert any(line.startswith("# Hardware: ") for line in head)
    assert any(line.startswith("# Numbers: ") for line in head)


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_shipped_comparison_is_read_with_all_its_runs_and_begins_alike(path: Path) -> None:
    comparison = read_comparison(path)
    assert comparison.name == path.stem
    cells = build_cells(comparison, build_points(comparison), comparison.seeds)
    assert len(cells) >= len(comparison.methods) * len(comparison.seeds)
    head = [line for line in path.read_text().splitlines()[:20] if line.startswith("#")]
    assert any(f"python -m finetune.compare recipes/{path.name}" in line for line in head)
    assert any(line.startswith("# Hardware: ") for line in head)
    assert any(line.startswith("# Numbers: ") for line in head)


LINES = st.sampled_from(
    [*GOOD.splitlines(), "  r: *x", "data: [", "- 1", "\t", "x: !!set {a}", "adapter: {method: [a]}"]
)
VALUES = st.one_of(st.text(max_size=12), st.sampled_from(["1", "[]", "{}", "{a: b}", "2e400", r'"\ud800"', r'"\0"']))
KEYS = st.sampled_from(
    [
        "name",
        "model",
        "model.config",
        "model.config.a",
        "adapter",
        "adapter.method",
        "data",
        "data.train",
        "a.b.c",
        "data.train.columns",
        "data.eval",
        "training.optim",
        "training.report_to",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.one_of(LINES, st.text(max_size=20)), max_size=12),
    overrides=st.lists(st.builds("{}={}".format, KEYS, VALUES), max_size=3),
    keeps_good=st.booleans(),
)
def test_a_recipe_of_any_shape_is_read_or_told_and_never_crashes(
    tmp_path: Path, lines: list[str], overrides: list[str], keeps_good: bool
) -> None:
    path = tmp_path / "fuzzed.yaml"
    path.write_text((GOOD if keeps_good else "") + "\n".join(lines), encoding="utf-8", errors="surrogatepass")
    try:
        recipe = read_recipe(path, overrides)
    except RecipeError as error:
        assert 1 <= len(str(error).splitlines()) <= 15
        str(error).encode()
    else:
        assert build_recipe(to_resolved(recipe)) == recipe


def test_a_page_of_nonsense_is_answered_in_about_a_second(write: Write) -> None:
    path = write(GOOD + "".join(f"  bogus_setting_{number}: 1\n" for number in range(1200)))
    start = time.perf_counter()
    message_of(path)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("typed", ["adapter: qlora", "adapter: {method: qlora}"])
def test_qlora_is_answered_with_what_it_is_made_of(write: Write, typed: str) -> None:
    told = message_of(write(typed))
    assert "qlora" in told
    assert "Write adapter: {method: lora}; model.quantization is nf4 already" in told
