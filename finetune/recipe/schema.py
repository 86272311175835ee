"""The recipe: every setting, its meaning, unit and default. The only list of settings there is.

`reading` fills these frozen sections from YAML; the command line's help, the docs and
`recipes/recipe.schema.json` are made from them. Imports neither torch nor transformers, so
that a typo is answered at once.

Two sections are open at one end: `adapter` takes the fields of the chosen PEFT method's config,
`training` those of the objective's trainer config, by the libraries' own names and checked against the
catalogue (`catalogue.json`), which is generated from the installed libraries.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from finetune.recipe.objective_defaults import fill_defaults
from finetune.recipe.rows_schema import ClassificationSettings, DataSettings, EvalFraction, SourceSettings
from finetune.recipe.section import Name, Section

__all__ = [
    "AdapterSettings",
    "BackendName",
    "ClassificationSettings",
    "DataSettings",
    "EvalFraction",
    "EvaluationSettings",
    "MemoryChoice",
    "ModelSettings",
    "Recipe",
    "RewardSettings",
    "SourceSettings",
    "TrainingSettings",
]


BackendName = Literal["transformers", "unsloth"]
MemoryChoice = Literal["auto", "recompute_all", "recompute_none"]


class ModelSettings(Section):
    """The base model: which weights, how they are held, where."""

    model_name_or_path: Annotated[
        Name | None,
        Field(description="Hub name or local folder of the base model; with `weights: random` it may be left out."),
    ] = None
    revision: Annotated[
        Name | None,
        Field(description="Branch, tag or commit on the Hub; null: the newest. The run records the commit it got."),
    ] = None
    tokenizer_name_or_path: Annotated[
        Name | None,
        Field(description="Hub name, folder or SentencePiece `tokenizer.model`; null: the base model's own tokenizer."),
    ] = None
    backend: Annotated[
        BackendName,
        Field(
            description="The library that loads and runs the model. unsloth: its kernels for LoRA on a frozen base; "
            "to be installed beside the others."
        ),
    ] = "transformers"
    weights: Annotated[
        Literal["pretrained", "random"],
        Field(description="random: the true shape without its weights, for benchmarks or a base of one's own."),
    ] = "pretrained"
    config: Annotated[
        Name | dict[str, Any] | None,
        Field(
            description="With `weights: random`: a config.json, a folder or Hub name that holds one, or its fields "
            "(with `model_type`)."
        ),
    ] = None
    quantization: Annotated[
        Literal["nf4", "fp4", "int8", "none"],
        Field(
            description="How bitsandbytes holds the frozen base: nf4 and fp4 take 0.52 bytes a parameter, int8 1, "
            "none 2 (16-bit) or 4 (32-bit)."
        ),
    ] = "nf4"
    double_quantization: Annotated[
        bool,
        Field(description="Quantize the 4-bit blocks' own scales too: 0.37 bits a parameter less. For nf4 and fp4."),
    ] = True
    compute_dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Field(
            description="Precision of the products. auto: bfloat16 from compute capability 8.0 on, float16 below "
            "(a T4), on a CPU bfloat16 with AVX512-BF16 or AMX, else float32."
        ),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "sdpa", "eager", "flash_attention_2", "documents"],
        Field(
            description="Attention kernel. documents: torch's own, run on each document of packed rows by itself; for "
            "other rows it is sdpa. auto: flash_attention_2 where installed and supported, else documents for a model "
            "that may read packed rows, else sdpa."
        ),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cuda", "cpu"], Field(description="auto: the first GPU where there is one, else the CPU.")
    ] = "auto"
    allow_pickled_weights: Annotated[
        bool,
        Field(
            description="Take weights that exist only as pickles (pytorch_model.bin); torch opens them as tensors and "
            "runs nothing."
        ),
    ] = False
    trust_remote_code: Annotated[
        bool,
        Field(description="Run the model repository's own Python; only with `revision` pinned to a 40-digit commit."),
    ] = False


class AdapterSettings(Section):
    """What is trained. Beside `method`: the fields of that PEFT method's config, by PEFT's names."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    method: Annotated[
        str,
        Field(
            description="A PEFT method by its name in lower case (lora, ia3, vera, …), one of ours (bitfit, "
            "bottleneck, hypernetwork, combined), or `full` / `top_k` for the base's own weights."
        ),
    ] = "lora"
    init_from: Annotated[
        Name | None,
        Field(
            description="A run or an adapter, as a folder or a Hub name, to train further; it brings its own settings. "
            "null: a fresh adapter."
        ),
    ] = None
    any_base: Annotated[
        bool,
        Field(description="With `init_from`: accept a base with another name or other weights than the adapter's own."),
    ] = False

    @property
    def fields(self) -> dict[str, Any]:
        """The method's own settings as typed, by PEFT's names."""
        return dict(self.model_extra or {})

    @property
    def virtual_tokens(self) -> int:
        """Learned vectors that a prompt method puts before each row."""
        held = [self.fields, *(self.fields.get("parts") or ())]
        return sum(int(one.get("num_virtual_tokens") or 0) for one in held)


class EvaluationSettings(Section):
    """Questions answered before and after the run, and samples written during it."""

    questions: Annotated[
        SourceSettings | None,
        Field(description="Rows whose last answer is the reference; scored before and after training."),
    ] = None
    preferences: Annotated[
        SourceSettings | None,
        Field(
            description="Held-out pairs: how often the chosen answer is the likelier one, before and after. null: "
            "those of `data.eval` where the objective reads pairs."
        ),
    ] = None
    general_text: Annotated[
        SourceSettings | None,
        Field(
            description="Plain text that is not trained on: its loss before and after says what was forgotten. Give it "
            "a `limit`: it is read twice."
        ),
    ] = None
    answer_pattern: Annotated[
        Name | None,
        Field(
            description="A Python regular expression: what its first group finds in an answer is scored, e.g. the last "
            "word of a sentence; an answer without a match is scored whole. null: the whole answer."
        ),
    ] = None
    metric: Annotated[
        Literal["exact_match"],
        Field(description="exact_match: equal after trimming spaces, case and one final full stop."),
    ] = "exact_match"
    max_new_tokens: Annotated[int, Field(ge=1, description="Maximum tokens of an answer.")] = 64
    batch_size: Annotated[int, Field(ge=1, description="Questions answered at once.")] = 16
    num_samples: Annotated[
        int, Field(ge=0, description="Answers written to samples.md at every evaluation; 0: none.")
    ] = 3


class RewardSettings(Section):
    """One part of what reinforcement learning is rewarded with: a built-in function, or a trained reward model."""

    function: Annotated[
        Literal["exact_match", "regex", "json", "length", "reward_model"],
        Field(
            description="exact_match: equal to the row's own answer. regex: `pattern` is found. json: the answer is "
            "valid JSON. length: between `min_tokens` and `max_tokens`. reward_model: the score of the model in `path`."
        ),
    ]
    weight: Annotated[float, Field(description="What the function's value, 0 to 1 or a score, is multiplied by.")] = 1.0
    pattern: Annotated[
        Name | None,
        Field(
            description="A Python regular expression. regex: searched for in the answer. exact_match: what its first "
            "group finds in answer and reference is compared; null: the whole."
        ),
    ] = None
    min_tokens: Annotated[int | None, Field(ge=0, description="For length: minimum tokens of an answer.")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="For length: maximum tokens of an answer.")] = None
    path: Annotated[
        Name | None, Field(description="For reward_model: the folder of a run of `objective: reward`, or its adapter.")
    ] = None


class TrainingSettings(Section):
    """The trainer. Beside these: any field of the objective's config in TRL, by its own name."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    num_train_epochs: Annotated[float, Field(gt=0, description="Passes over the data; `max_steps` overrides it.")] = 1.0
    max_steps: Annotated[int, Field(ge=-1, description="Optimizer steps; -1: decided by the epochs.")] = -1
    per_device_train_batch_size: Annotated[
        int, Field(ge=1, description="Rows of a micro-batch (packed rows where packing is on).")
    ] = 2
    per_device_eval_batch_size: Annotated[int, Field(ge=1, description="Rows of an evaluation batch.")] = 4
    gradient_accumulation_steps: Annotated[
        int, Field(ge=1, description="Micro-batches whose gradients make one optimizer step.")
    ] = 4
    learning_rate: Annotated[
        float,
        Field(
            gt=0, description="Peak learning rate; for sft with LoRA 1e-4 to 2e-4 is usual, for preferences far less."
        ),
    ] = 2e-4
    lr_scheduler_type: Annotated[
        str, Field(description="Transformers' name of the schedule: cosine, linear, constant, …")
    ] = "cosine"
    warmup_steps: Annotated[
        float, Field(ge=0, description="Steps of linear warm-up; below 1 it is a share of all steps.")
    ] = 0.03
    gradient_checkpointing: Annotated[
        bool,
        Field(
            description="Whether activations may be recomputed in the backward pass: less memory, up to a third more "
            "time. `memory` decides which layers."
        ),
    ] = True
    memory: Annotated[
        MemoryChoice,
        Field(
            description="How memory that would be idle is used. auto: as many layers as fit recompute nothing, "
            "then 4-bit weights are kept in the compute dtype too; 5 % stay free. recompute_all: every layer is "
            "recomputed. recompute_none: none is. Losses and weights are the same."
        ),
    ] = "auto"
    logging_steps: Annotated[int, Field(ge=1, description="Steps between two lines of metrics.jsonl.")] = 1
    eval_steps: Annotated[
        float | None,
        Field(
            gt=0,
            description="Steps between evaluations, below 1 a share of all steps; with `data.eval` the best of the "
            "evaluated steps is the result. null: none during training, and the last step is the result.",
        ),
    ] = None
    save_steps: Annotated[
        float, Field(gt=0, description="Steps between checkpoints, below 1 a share of all steps.")
    ] = 200
    save_total_limit: Annotated[
        int,
        Field(ge=2, description="Newest checkpoints kept, including one to fall back on; the best one is kept too."),
    ] = 2
    early_stopping_patience: Annotated[
        int | None,
        Field(
            ge=1,
            description="Stop after this many evaluations without a better loss (rloo, grpo: reward; classify: score); "
            "needs `data.eval` and `eval_steps`.",
        ),
    ] = None
    non_finite: Annotated[
        Literal["raise", "skip"],
        Field(
            description="What becomes of a step whose loss or gradient is not finite. raise: the run stops before its "
            "update. skip: the update is left out, the rows are written to non_finite.jsonl, and the run goes on."
        ),
    ] = "raise"
    max_skipped_steps: Annotated[
        int, Field(ge=1, description="With `non_finite: skip`: steps left out in a whole run; the next one stops it.")
    ] = 10
    rehearsal: Annotated[
        bool,
        Field(
            description="Before the first step try one on the longest rows, with an evaluation batch and a checkpoint: "
            "what does not fit is found at once."
        ),
    ] = True
    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "mlflow", "trackio"]],
        Field(description="Trackers beside metrics.jsonl: tensorboard, wandb, mlflow, trackio."),
    ] = []

    @property
    def fields(self) -> dict[str, Any]:
        """Further settings as typed, by the trainer config's own names."""
        return dict(self.model_extra or {})


class Recipe(Section):
    """One run: this base model, this adapter, these rows, these settings."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
            description="Name of the run and of its folder under `output_dir`: letters, digits, `.`, `_` and `-`.",
        ),
    ]
    objective: Annotated[
        Literal["sft", "pretrain", "mlm", "dpo", "kto", "orpo", "reward", "rloo", "grpo", "classify"],
        Field(
            description="sft: answers to prompts. pretrain: plain text, every token trained. mlm: plain text, masked "
            "tokens restored by an encoder. dpo, kto, orpo: answers preferred over others. reward: a model that "
            "scores answers. rloo, grpo: reinforcement by `rewards`. classify: labels or numbers for texts."
        ),
    ] = "sft"
    seed: Annotated[
        int, Field(ge=0, lt=2**32, description="Seed of the split, the shuffling, the adapter's start and dropout.")
    ] = 42
    model: Annotated[ModelSettings, Field(description="The base model.")]
    adapter: Annotated[AdapterSettings, Field(description="What is trained.")] = AdapterSettings()
    data: Annotated[DataSettings, Field(description="The rows.")]
    rewards: Annotated[
        list[RewardSettings], Field(description="What rloo and grpo are rewarded with; the parts are added up.")
    ] = []
    classification: Annotated[
        ClassificationSettings, Field(description="Task, labels and score of `objective: classify`.")
    ] = ClassificationSettings()
    evaluation: Annotated[EvaluationSettings, Field(description="Questions and samples.")] = EvaluationSettings()
    training: Annotated[TrainingSettings, Field(description="The trainer.")] = TrainingSettings()
    output_dir: Annotated[
        Name, Field(description="Folder that run folders are made in: a disk, a mounted drive, a volume.")
    ] = "outputs"

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        return fill_defaults(values) if isinstance(values, dict) else values
