"""The trainer trains what the batches say: packed documents apart, means over tokens, settings that act."""

import json
import math
import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed
from trl import SFTTrainer

from finetune.data import row_cache
from finetune.data.batches import IGNORE_INDEX, Collator
from finetune.data.rendering import Renderer
from finetune.data.sources import load_examples
from finetune.data.templates import load_template
from finetune.data.tokens import TokenRows
from finetune.errors import DivergedError, PlaceError, RecipeError
from finetune.model.adapters import attach_adapter
from finetune.model.tokenizer import load_tokenizer
from finetune.objectives import supervised
from finetune.objectives.building import RunArguments, TrainerParts
from finetune.objectives.supervised import SupervisedTrainer, build_arguments, build_document_rows, build_trainer
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import AdapterSettings, DataSettings, ModelSettings, SourceSettings, TrainingSettings
from tests.model.tiny_models import load_tiny, write_tiny_model

LORA = AdapterSettings(method="lora", r=4)
QUIET = TrainingSettings(gradient_checkpointing=False, warmup_steps=0, learning_rate=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(shared_data) -> PreTrainedTokenizerFast:
    return load_tokenizer(ModelSettings(model_name_or_path=str(shared_data / "models" / "stories260K")))


def documents(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 24, (count,), generator=generator).tolist()
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in lengths]


def to_rows(*rows: list[list[int]]) -> TokenRows:
    """Packed rows of these documents, all trained."""
    columns = {
        "input_ids": [list(chain.from_iterable(row)) for row in rows],
        "labels": [list(chain.from_iterable(row)) for row in rows],
        "seq_lengths": [[len(document) for document in row] for row in rows],
    }
    rows = Dataset.from_dict(columns)
    return TokenRows(rows, rows, {}, "")


def to_single_rows(found: list[list[int]]) -> TokenRows:
    lengths = [len(document) for document in found]
    rows = Dataset.from_dict({"input_ids": found, "labels": found, "length": lengths})
    return TokenRows(rows, rows, {}, "")


def make(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    train: TokenRows,
    *,
    held_out: TokenRows | None = None,
    packing: bool = True,
    adapter: AdapterSettings = LORA,
    quantization: str = "none",
    attention: str = "sdpa",
    compute_dtype: str = "float32",
    **training: object,
) -> SupervisedTrainer:
    base = load_tiny(folder, quantization, attention=attention, compute_dtype=compute_dtype)
    settings = QUIET.model_copy(update=training)
    run = RunArguments(
        name="test", device=base.device, compute_dtype=base.compute_dtype, evaluates=held_out is not None,
        seed=1, checkpoints_dir=tmp_path / "checkpoints",
    )  # fmt: skip
    arguments = build_arguments(settings, run)
    return build_trainer(
        TrainerParts(
            base=base,
            model=attach_adapter(base, adapter, seed=1),
            tokenizer=tokenizer,
            arguments=arguments,
            train=train,
            held_out=held_out,
            data=DataSettings(train=SourceSettings(path="rows.jsonl"), packing=packing),
            training=settings,
        ),
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_batch_gives_each_document_the_loss_it_has_alone(folder, tokenizer, tmp_path, attention):
    found = documents(5)
    packed = make(folder, tokenizer, tmp_path, to_rows(found[:3], found[3:]), attention=attention)
    [batch] = packed.get_train_dataloader()
    loss = packed.compute_loss(packed.model, dict(batch)).item()

    losses, tokens = 0.0, 0
    with torch.no_grad():
        for document in found:
            ids = torch.tensor([document])
            logits = packed.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            losses += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            tokens += len(document) - 1
    assert loss == pytest.approx(losses / tokens, abs=1e-5)


class WithoutPositions(Collator):
    """Batches whose positions run on from one document into the next."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        del batch["position_ids"]
        return batch


class AllOnesMask(Collator):
    """Batches with the mask of padded ones, which takes the place of the block-diagonal one."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


IN_BOTH_MODES = pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
LEAKY = pytest.mark.parametrize("leaky", [WithoutPositions, AllOnesMask])


@LEAKY
def test_a_packed_run_whose_documents_read_each_other_stops_before_its_first_step(
    folder, tokenizer, tmp_path, monkeypatch, leaky
):
    monkeypatch.setattr(supervised, "Collator", leaky)
    with pytest.raises(PlaceError) as error:
        make(folder, tokenizer, tmp_path, to_rows(documents(3))).check_before_start()
    first, way_out = str(error.value).splitlines()
    assert first.startswith("Packed documents read each other on cpu with these kernels: a document's loss is ")
    before, after = (float(number) for number in re.findall(r"\d+\.\d{4}", first))
    assert before != after
    assert way_out == "  Train on a row for each: data.packing=false"


@LEAKY
def test_a_row_for_each_document_is_not_checked_for_neighbours(folder, tokenizer, tmp_path, monkeypatch, leaky):
    monkeypatch.setattr(supervised, "Collator", leaky)
    make(folder, tokenizer, tmp_path, to_single_rows(documents(3)), packing=False).check_before_start()


@IN_BOTH_MODES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_documents_have_to_be_apart_in_training_and_in_evaluation(folder, tokenizer, tmp_path, dtype, is_training):
    trainer = make(folder, tokenizer, tmp_path, to_rows(documents(3)), compute_dtype=dtype)

    def drop_positions(model, args, kwargs):
        kept = {name: value for name, value in kwargs.items() if name != "position_ids"}
        return args, kept if model.training == is_training else kwargs

    hook = trainer.model.register_forward_pre_hook(drop_positions, with_kwargs=True)
    with pytest.raises(PlaceError, match="Packed documents read each other"):
        trainer.check_before_start()
    hook.remove()
    trainer.check_before_start()


@IN_BOTH_MODES
@pytest.mark.parametrize(
    ("attention", "dtype", "quantization"),
    [
        ("sdpa", "float32", "nf4"),
        ("eager", "float32", "none"),
        ("sdpa", "bfloat16", "none"),
        ("sdpa", "bfloat16", "nf4"),
    ],
)
def test_the_check_of_packed_documents_leaves_model_and_random_numbers_as_they_were(
    folder, tokenizer, tmp_path, attention, dtype, quantization, is_training
):
    trainer = make(
        folder, tokenizer, tmp_path, to_rows(documents(3)), attention=attention, compute_dtype=dtype,
        quantization=quantization, adapter=AdapterSettings(method="lora", r=4, lora_dropout=0.5),
        gradient_checkpointing=True,
    )  # fmt: skip
    trainer.model.train(is_training)
    modes = [module.training for module in trainer.model.modules()]
    weights = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trainer.check_before_start()
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in trainer.model.modules()] == modes
    assert trainer.state.num_input_tokens_seen == 0
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
        assert parameter.grad is None


def test_the_held_out_loss_is_a_mean_over_tokens_whatever_the_batches(folder, tokenizer, tmp_path):
    found = documents(9, seed=3)
    held_out = to_single_rows(found)
    losses = [
        make(
            folder, tokenizer, tmp_path, to_single_rows(found), held_out=held_out, packing=False,
            per_device_eval_batch_size=size,
        ).measure_held_out()["eval_loss"]
        for size in (1, 2, 9)
    ]  # fmt: skip
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_accumulated_micro_batches_take_the_step_of_one_large_batch(folder, tokenizer, tmp_path):
    found = documents(8, seed=5)
    weights = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = make(
            folder, tokenizer, tmp_path, to_single_rows(found), packing=False, max_steps=1, optim="sgd",
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-7, rtol=1e-4)


def test_tokens_are_counted_without_padding_and_checkpoints_carry_the_count(folder, tokenizer, tmp_path):
    found = documents(8, seed=6)
    trainer = make(
        folder, tokenizer, tmp_path, to_single_rows(found), packing=False, max_steps=2, logging_steps=10, save_steps=1,
        per_device_train_batch_size=4, gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer.train()
    total = sum(map(len, found))
    assert trainer.state.num_input_tokens_seen == total
    saved = json.loads((tmp_path / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    assert saved["num_input_tokens_seen"] == total


def test_the_adapter_of_a_quantized_base_is_trained_in_float32_with_all_its_digits(folder, tokenizer, tmp_path):
    base = load_tiny(folder, "nf4")
    start = {name: p.clone() for name, p in attach_adapter(base, LORA, seed=1).named_parameters() if p.requires_grad}
    trainer = make(folder, tokenizer, tmp_path, to_rows(documents(4)), quantization="nf4")
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert trained.keys() == start.keys()
    assert all(torch.equal(trained[name], start[name]) for name in start)


def test_what_is_not_finite_is_never_saved(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, to_rows(documents(4)), max_steps=3, logging_steps=10, save_steps=1)
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if p.requires_grad).fill_(math.nan)
    with pytest.raises(DivergedError):
        trainer.train()
    assert not list((tmp_path / "checkpoints").glob("checkpoint-*"))


def test_an_infinite_gradient_norm_ends_a_run_but_under_a_float16_scaler_only_twenty_in_a_row(
    folder, tokenizer, tmp_path
):
    trainer = make(folder, tokenizer, tmp_path, to_rows(documents(2)))
    trainer._globalstep_last_logged, trainer._tr_loss = 0, torch.zeros(())  # as training begins
    [batch] = trainer.get_train_dataloader()

    def check(loss: float, norm: float) -> None:
        trainer.finite.note(torch.tensor(loss), batch)
        trainer.finite.check(torch.tensor(norm))

    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    for norm in (*[math.inf] * 19, 1.0, *[math.nan] * 19):  # the scaler skips such a step and halves its scale
        check(1.0, norm)
    with pytest.raises(DivergedError, match="20 steps in a row had a gradient beyond float16"):
        check(1.0, math.inf)
    with pytest.raises(DivergedError, match="the loss is not finite"):
        check(math.inf, 1.0)
    trainer.accelerator.scaler = None
    check(1.0, 1.0)
    with pytest.raises(DivergedError, match="the loss is finite and its gradient is not"):
        check(1.0, math.inf)


def test_what_the_trainer_refuses_is_a_fault_of_the_recipe(folder, tokenizer, tmp_path):
    with pytest.raises(RecipeError, match="`training`: TRL refuses a setting"):
        make(folder, tokenizer, tmp_path, to_rows(documents(2)), optim="no_such_optimizer")


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_gradients_reach_the_first_layers_adapter_with_and_without_checkpointing(
    folder, tokenizer, tmp_path, quantization
):
    found = to_rows(documents(4))
    gradients = []
    for checkpointing in (False, True):
        trainer = make(
            folder, tokenizer, tmp_path, found, quantization=quantization, gradient_checkpointing=checkpointing
        )
        [batch] = trainer.get_train_dataloader()
        trainer.model.train()
        if checkpointing:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        named = dict(trainer.model.named_parameters())
        first = next(p for name, p in named.items() if "layers.0.self_attn.q_proj.lora_B" in name)
        gradients.append(first.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, to_rows(documents(4)), max_steps=3)
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if p.requires_grad).fill_(math.nan)
    with pytest.raises(DivergedError, match=r"step 1: the loss is not finite"):
        trainer.train()


def test_the_best_step_is_put_back_at_the_end(folder, tokenizer, tmp_path):
    found = documents(6, seed=9)
    trainer = make(
        folder, tokenizer, tmp_path, to_single_rows(found[:3]), held_out=to_single_rows(found[3:]), packing=False,
        max_steps=3, eval_steps=1, save_steps=1, learning_rate=0.5, lr_scheduler_type="constant",
        per_device_train_batch_size=3, gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer.train()
    losses = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    best = min(losses, key=losses.__getitem__)
    assert best < 3, "a learning rate of 0.5 was meant to spoil the last step"
    assert trainer.find_best_checkpoint_name() == f"checkpoint-{best}"
    trainer.load_weights(tmp_path / "checkpoints" / f"checkpoint-{best}")
    assert trainer.measure_held_out()["eval_loss"] == pytest.approx(losses[best], abs=1e-5)


def test_early_stopping_ends_a_run_that_gets_no_better(folder, tokenizer, tmp_path):
    found = documents(6, seed=9)
    trainer = make(
        folder, tokenizer, tmp_path, to_single_rows(found[:3]), held_out=to_single_rows(found[3:]), packing=False,
        max_steps=40, eval_steps=1, learning_rate=0.5, early_stopping_patience=2, per_device_train_batch_size=3,
        gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step < 40


def test_a_field_of_the_trainers_own_reaches_it(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, to_rows(documents(2)), neftune_noise_alpha=5.0, weight_decay=0.2)
    assert (trainer.args.neftune_noise_alpha, trainer.args.weight_decay) == (5.0, 0.2)


class Meddling(SFTTrainer):
    """A trainer that decides something by itself."""

    def __init__(self, *, args, **kwargs):
        args.max_grad_norm = 9.0
        super().__init__(args=args, **kwargs)


class Meddled(StepMixin, Meddling):
    """It, with what must sit inside the step."""


def test_a_setting_that_the_trainer_itself_replaces_is_told_and_else_nothing_is(
    folder, tokenizer, tmp_path, monkeypatch, caplog
):
    rows = to_single_rows(documents(2))
    make(folder, tokenizer, tmp_path, rows, packing=False, max_grad_norm=1.0)
    assert "asked for" not in caplog.text
    monkeypatch.setattr(supervised, "SupervisedTrainer", Meddled)
    make(folder, tokenizer, tmp_path, rows, packing=False, max_grad_norm=1.0)
    told = [record.getMessage() for record in caplog.records if record.name == "finetune.objectives.changes"]
    assert told == ["`training.max_grad_norm`: asked for was 1.0, the library takes 9.0."]


def test_a_row_of_one_token_carries_no_label_into_its_neighbour(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, to_rows([[5], [6, 7, 8]]))
    [batch] = trainer.get_train_dataloader()
    assert batch["labels"].tolist() == [[IGNORE_INDEX, IGNORE_INDEX, 7, 8]]


def sum_plainly(trainer: SupervisedTrainer, found: list[list[int]]) -> tuple[float, int]:
    """The loss of all documents, each alone and from its second token on, and how many tokens that is."""
    total = 0.0
    with torch.no_grad():
        for document in found:
            logits = trainer.model(input_ids=torch.tensor([document]), use_cache=False).logits[0]
            logits = logits[-len(document) : -1].float()  # behind learned vectors, where there are any
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(document[1:]), reduction="sum").item()
    return total, sum(len(document) - 1 for document in found)


def test_packed_and_padded_rows_train_the_same_tokens_where_the_library_counts_all_labels(tokenizer, tmp_path):
    """transformers counts a GPT-2's labels from the first token on, and those of most others from the second."""
    set_seed(0)
    shape = {"vocab_size": 128, "n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 2}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(**shape, **no_dropout, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    found = documents(6, seed=9)
    adapter = AdapterSettings(method="lora", r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    losses = []
    for packing, rows in ((True, to_rows(found[:3], found[3:])), (False, to_single_rows(found))):
        trainer = make(
            tmp_path / "gpt2", tokenizer, tmp_path, rows, packing=packing, adapter=adapter, max_steps=1,
            per_device_train_batch_size=len(rows.dataset), gradient_accumulation_steps=1, logging_steps=1,
        )  # fmt: skip
        total, tokens = sum_plainly(trainer, found)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        assert losses[-1] == pytest.approx(total / tokens, abs=1e-4)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_learned_vectors_before_a_row_are_not_trained_to_predict_its_first_token(folder, tokenizer, tmp_path):
    found = documents(6, seed=10)
    adapter = AdapterSettings(method="prompt_tuning", num_virtual_tokens=3)
    trainer = make(
        folder, tokenizer, tmp_path, to_single_rows(found), held_out=to_single_rows(found), packing=False,
        adapter=adapter, max_steps=1, per_device_train_batch_size=6, gradient_accumulation_steps=1, logging_steps=1,
    )  # fmt: skip
    total, tokens = sum_plainly(trainer, found)
    assert trainer.measure_held_out()["eval_loss"] == pytest.approx(total / tokens, abs=1e-4)
    trainer.train()
    assert trainer.state.log_history[-2]["loss"] == pytest.approx(total / tokens, abs=1e-4)


def test_rows_of_a_token_budget_are_those_of_the_documents_under_any_version_of_the_libraries(
    tokenizer, tmp_path, monkeypatch
):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "once " * count}) + "\n" for count in range(1, 40)))
    source = SourceSettings(path=str(path), format="text")
    data = DataSettings(train=source, packing=True, max_length=64, tokens_per_batch=128)
    renderer = Renderer(load_template("vicuna", tokenizer), tokenizer)
    built = []
    try:
        for library in ("of today", "of tomorrow"):
            monkeypatch.setattr(row_cache, "version", lambda name, library=library: library)
            row_cache.hash_makers.cache_clear()
            loaded = load_examples(source, kind="document", seed=1, on_bad_rows="error")
            built.append(build_document_rows(loaded, renderer, data))
    finally:
        row_cache.hash_makers.cache_clear()
    one, other = built
    assert one.fingerprint != other.fingerprint
    assert one.report["label_hash"] == other.report["label_hash"]
    assert one.dataset["seq_lengths"][:] == other.dataset["seq_lengths"][:]
    assert one.dataset["input_ids"][:] == other.dataset["input_ids"][:]
