"""The recipe: every setting, its meaning, unit and default. The only list of settings there is.

`reading` fills these frozen sections from YAML; the command line's help, the docs and
`recipes/recipe.schema.json` are made from them. Imports neither torch nor transformers, so
that a typo is answered at once.

Two sections are open at one end: `adapter` takes the fields of the chosen PEFT method's config,
`training` those of the objective's trainer config, by the libraries' own names and checked against the
catalogue (`catalogue.json`), which is generated from the installed libraries.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetune.recipe.objective_defaults import fill_defaults

__all__ = [
    "AdapterSettings",
    "BackendName",
    "DataSettings",
    "EvalFraction",
    "EvaluationSettings",
    "ModelSettings",
    "Recipe",
    "RewardSettings",
    "SourceSettings",
    "TrainingSettings",
]


BackendName = Literal["transformers", "unsloth"]
# A text that names something: an empty one is a slip.
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


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
        Literal["auto", "sdpa", "eager", "flash_attention_2"],
        Field(description="Attention kernel. auto: flash_attention_2 where installed and supported, else sdpa."),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cuda", "cpu"], Field(description="auto: the first GPU where there is one, else the CPU.")
    ] = "auto"
    trust_remote_code: Annotated[
        bool,
        Field(description="Run the model repository's own Python; only with `revision` pinned to a 40-digit commit."),
    ] = False


class AdapterSettings(Section):
    """What is trained. Beside `method`: the fields of that PEFT method's config, by PEFT's names."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    method: Annotated[
        str,
        Field(description="A PEFT method by its name in lower case (lora, ia3, vera, …), or `full` for all weights."),
    ] = "lora"
    init_from: Annotated[
        Name | None,
        Field(
            description="A run's folder or an adapter's, here or on the Hub, whose adapter is trained on; it brings "
            "its own settings. null: a fresh adapter."
        ),
    ] = None

    @property
    def fields(self) -> dict[str, Any]:
        """The method's own settings as typed, by PEFT's names."""
        return dict(self.model_extra or {})


class SourceSettings(Section):
    """One place that rows come from."""

    path: Annotated[
        Name, Field(description="Hub name, a file (.json .jsonl .csv .parquet, also .gz) or a folder of such files.")
    ]
    format: Annotated[
        Literal[
            "auto",
            "messages",
            "sharegpt",
            "alpaca",
            "prompt_completion",
            "text",
            "preference",
            "openai_preference",
            "sharegpt_preference",
            "orca",
            "dialogues",
            "ranking",
            "judged",
            "judged_messages",
            "prompt",
        ],
        Field(description="Shape of a row. auto decides by the columns and says what it found."),
    ] = "auto"
    columns: Annotated[
        dict[str, str],
        Field(description="The format's column -> your column where names differ, e.g. {instruction: question}."),
    ] = {}
    split: Annotated[Name | None, Field(description="Split of a Hub dataset; null: train.")] = None
    subset: Annotated[Name | None, Field(description="Configuration of a Hub dataset that has several.")] = None
    revision: Annotated[Name | None, Field(description="Branch, tag or commit of a Hub dataset.")] = None
    limit: Annotated[int | None, Field(ge=1, description="Take only the first rows of this source.")] = None
    weight: Annotated[
        float,
        Field(gt=0, description="Share in a mix, relative to the other sources; the first to run out ends the mix."),
    ] = 1.0


class EvalFraction(Section):
    """A part of the training rows, held out by the seed."""

    fraction: Annotated[float, Field(gt=0, lt=1, description="Share of the training rows held out for evaluation.")]


class DataSettings(Section):
    """The rows, how they become tokens, and which tokens are trained."""

    train: Annotated[
        SourceSettings | Annotated[list[SourceSettings], Field(min_length=1)],
        Field(description="One source, or a list mixed by weight."),
    ]
    eval: Annotated[
        EvalFraction | SourceSettings | None,
        Field(description="{fraction: …} of the training rows, a source of its own, or null for no evaluation."),
    ] = None
    template: Annotated[
        Name,
        Field(
            description="alpaca, mistral, llama2, chatml, zephyr, vicuna, llama3, model (the tokenizer's own), or a "
            "path to a .jinja file."
        ),
    ] = "model"
    max_length: Annotated[int, Field(ge=8, description="Tokens of one training row, prompt and answer together.")] = (
        2048
    )
    train_on: Annotated[
        Literal["answers", "last_answer", "everything"],
        Field(description="Which tokens carry loss: every assistant turn, the last one, or all tokens."),
    ] = "answers"
    too_long: Annotated[
        Literal["drop", "truncate", "split", "error"] | None,
        Field(
            description="What happens to a row of more than `max_length` tokens; always counted. split: several "
            "rows, for `objective: pretrain` alone. null: split for pretrain, drop for the others."
        ),
    ] = None
    packing: Annotated[
        bool,
        Field(
            description="Fill rows of `max_length` with several documents, kept apart by their positions; for sft and "
            "pretrain alone."
        ),
    ] = True
    special_tokens_in_data: Annotated[
        Literal["escape", "error", "allow"],
        Field(
            description="Control tokens such as </s> written in a row's text: break them up, stop with file and "
            "line, or let them through."
        ),
    ] = "escape"
    on_bad_rows: Annotated[
        Literal["error", "skip"],
        Field(description="A row that cannot be read: stop with file, line and reason, or count it and go on."),
    ] = "error"


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
    max_new_tokens: Annotated[int, Field(ge=1, description="Tokens of an answer at most.")] = 64
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
    min_tokens: Annotated[int | None, Field(ge=0, description="For length: tokens of an answer at least.")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="For length: tokens of an answer at most.")] = None
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
        bool, Field(description="Recompute activations in the backward pass: less memory, about a third more time.")
    ] = True
    logging_steps: Annotated[int, Field(ge=1, description="Steps between two lines of metrics.jsonl.")] = 1
    eval_steps: Annotated[
        float | None,
        Field(gt=0, description="Steps between evaluations, below 1 a share; null: at the end alone."),
    ] = None
    save_steps: Annotated[
        float, Field(gt=0, description="Steps between checkpoints, below 1 a share of all steps.")
    ] = 200
    save_total_limit: Annotated[
        int,
        Field(ge=2, description="Newest checkpoints kept, one to fall back on among them; the best one is kept too."),
    ] = 2
    early_stopping_patience: Annotated[
        int | None,
        Field(
            ge=1,
            description="Evaluations without a better loss (rloo, grpo: reward) before the run stops; needs "
            "`data.eval` and `eval_steps`.",
        ),
    ] = None
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
        Literal["sft", "pretrain", "dpo", "kto", "orpo", "reward", "rloo", "grpo"],
        Field(
            description="sft: answers to prompts. pretrain: plain text, every token trained. dpo, kto, orpo: answers "
            "preferred over others. reward: a model that scores answers. rloo, grpo: reinforcement by `rewards`."
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
    evaluation: Annotated[EvaluationSettings, Field(description="Questions and samples.")] = EvaluationSettings()
    training: Annotated[TrainingSettings, Field(description="The trainer.")] = TrainingSettings()
    output_dir: Annotated[
        Name, Field(description="Folder that run folders are made in: a disk, a mounted drive, a volume.")
    ] = "outputs"

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        return fill_defaults(values) if isinstance(values, dict) else values
