"""Settings that go by another name here, or that another section decides.

Three tables of plain data, read when a key is unknown: fields of the trainer's config and of PEFT's
configs that the recipe sets elsewhere, and the names other tools use for our settings. Each points
to ours as `section.key`, or gives the reason why there is none.
"""

from dataclasses import dataclass

__all__ = ["OTHER_TOOLS", "OWNED_ADAPTER_FIELDS", "OWNED_TRAINER_FIELDS", "Instead"]


@dataclass(frozen=True, slots=True)
class Instead:
    """What stands in place of a setting: our own as `section.key` where there is one, and how to use it."""

    setting: str | None
    hint: str = ""


_NO_SECRETS = "A recipe holds no secrets: log in with `hf auth login`, or set HF_TOKEN in the environment."
_NO_PUSH = "A run pushes nothing; its result is pushed with `hf upload OWNER/NAME outputs/RUN/adapter`."
_STEPS = "Evaluation, saving and logging go by steps; below 1 the number is a share of all steps."

OWNED_TRAINER_FIELDS: dict[str, Instead] = {
    # the run
    "output_dir": Instead("output_dir", "The run's folder is <output_dir>/<name>."),
    "seed": Instead("seed"),
    "data_seed": Instead("seed", "One seed serves the split, the order and the adapter's start."),
    "resume_from_checkpoint": Instead(
        None, "Add --resume to the command: it continues the newest verified checkpoint."
    ),
    "do_train": Instead(None, "The verb decides: `python -m finetune.sft` trains."),
    "do_eval": Instead("data.eval", "With held-out rows the run evaluates."),
    "do_predict": Instead("evaluation.questions", "Questions are answered before and after the run."),
    "hub_token": Instead(None, _NO_SECRETS),
    "push_to_hub_token": Instead(None, _NO_SECRETS),
    "push_to_hub": Instead(None, _NO_PUSH),
    "hub_model_id": Instead(None, _NO_PUSH),
    "hub_private_repo": Instead(None, _NO_PUSH),
    "hub_strategy": Instead(None, _NO_PUSH),
    "hub_always_push": Instead(None, _NO_PUSH),
    "hub_revision": Instead(None, _NO_PUSH),
    "disable_tqdm": Instead(None, "The run shows a bar of its own where there is a terminal, and lines elsewhere."),
    "include_num_input_tokens_seen": Instead(None, "Tokens are always counted, without padding: metrics.jsonl."),
    "local_rank": Instead(None, "`accelerate launch` sets it."),
    "parallelism_config": Instead(None, "`accelerate launch` sets it."),
    # the model
    "model_init_kwargs": Instead("model", "How the base is loaded is said there, setting by setting."),
    "trust_remote_code": Instead("model.trust_remote_code"),
    "use_cpu": Instead("model.device", "Write cpu there."),
    "bf16": Instead("model.compute_dtype", "Write bfloat16 there, or auto."),
    "fp16": Instead("model.compute_dtype", "Write float16 there, or auto."),
    # the rows
    "max_length": Instead("data.max_length"),
    "truncation_mode": Instead("data.too_long", "drop, truncate, split or error."),
    "packing": Instead("data.packing"),
    "packing_strategy": Instead("data.packing", "Rows are always packed best-fit decreasing, documents kept apart."),
    "eval_packing": Instead("data.packing", "Held-out rows are laid out as the training rows are."),
    "padding_free": Instead("data.packing", "Without packing, rows go padding-free where the attention allows it."),
    "pad_to_multiple_of": Instead(None, "Rows are padded to the longest of their batch."),
    "dataset_text_field": Instead("data.train.columns", "E.g. columns: {text: your_column}."),
    "dataset_kwargs": Instead(None, "Rows reach the trainer ready, so it prepares nothing."),
    "dataset_num_proc": Instead(None, "Rows are tokenized in batches by the fast tokenizer, which uses every core."),
    "shuffle_dataset": Instead("seed", "Rows are always shuffled, by the seed."),
    "remove_unused_columns": Instead(None, "Rows reach the trainer with just the columns it reads."),
    "length_column_name": Instead(None, "Rows reach the trainer with just the columns it reads."),
    "completion_only_loss": Instead("data.train_on", "answers, last_answer or everything."),
    "assistant_only_loss": Instead("data.train_on", "answers, last_answer or everything."),
    "chat_template_path": Instead("data.template", "A name, or a path to a .jinja file."),
    "eos_token": Instead("data.template", "The template says which token ends an answer."),
    "pad_token": Instead(None, "The tokenizer gets one without a new row in the embeddings."),
    "auto_find_batch_size": Instead(
        "training.per_device_train_batch_size",
        "It restarts a run with another batch size; where memory is full the message says what to set.",
    ),
    # rhythm and the best step
    "eval_strategy": Instead("training.eval_steps", _STEPS),
    "save_strategy": Instead("training.save_steps", _STEPS),
    "logging_strategy": Instead("training.logging_steps", _STEPS),
    "load_best_model_at_end": Instead(
        "training.eval_steps", "With it and data.eval the best step's weights are the result."
    ),
    "metric_for_best_model": Instead(None, "The best step is the one with the lowest held-out loss."),
    "greater_is_better": Instead(None, "The best step is the one with the lowest held-out loss."),
    "logging_nan_inf_filter": Instead(None, "It hides a loss that is not finite; the run stops on one instead."),
    # checkpoints
    "save_only_model": Instead(None, "Every checkpoint can be resumed; the adapter alone is the run's result."),
    "ignore_data_skip": Instead(None, "A resumed run goes on at the very row where it stopped."),
    "restore_callback_states_from_checkpoint": Instead(None, "A resumed run always takes them up again."),
    "enable_jit_checkpoint": Instead(None, "SIGTERM already saves a checkpoint at the end of the step."),
}

OWNED_ADAPTER_FIELDS: dict[str, Instead] = {
    "task_type": Instead("objective"),
    "peft_type": Instead("adapter.method", "E.g. method: lora."),
    "auto_mapping": Instead(None, "PEFT fills it when the adapter is saved."),
    "peft_version": Instead(None, "PEFT fills it when the adapter is saved."),
    "inference_mode": Instead(None, "An adapter is trained here; PEFT sets this when it is loaded for use."),
    "base_model_name_or_path": Instead("model.model_name_or_path"),
    "revision": Instead("model.revision"),
}

# ours, how to use it, and what axolotl, LLaMA-Factory, Unsloth, torchtune, ms-swift and older TRL call it
_ELSEWHERE: list[tuple[str, str, str]] = [
    ("model.model_name_or_path", "", "base_model model_name pretrained_model_name_or_path model_id"),
    ("model.revision", "", "model_revision"),
    ("model.tokenizer_name_or_path", "", "tokenizer tokenizer_name tokenizer_path"),
    ("model.quantization", "nf4 is QLoRA's 4-bit.", "load_in_4bit use_4bit bits quantization_bit quant_bits"),
    (
        "model.quantization",
        "nf4, fp4, int8 or none.",
        "bnb_4bit_quant_type quant_type quantization_method quant_method",
    ),
    ("model.quantization", "Write int8 there.", "load_in_8bit use_8bit"),
    (
        "model.double_quantization",
        "",
        "bnb_4bit_use_double_quant double_quant use_bnb_nested_quant use_double_quant use_nested_quant",
    ),
    ("model.compute_dtype", "", "bnb_4bit_compute_dtype dtype torch_dtype precision bf16 fp16 half"),
    ("model.attention", "", "attn_implementation flash_attn flash_attention use_flash_attention_2 sdp_attention"),
    ("model.device", "", "device_map use_cpu no_cuda"),
    ("adapter.method", "", "adapter_type peft_method finetuning_type tuner_type train_type lora_type"),
    ("adapter.method", "Write method: lora.", "use_peft use_lora lora"),
    ("adapter.r", "", "lora_r lora_rank rank"),
    ("adapter.lora_alpha", "", "alpha"),
    ("adapter.lora_dropout", "", "dropout"),
    (
        "adapter.target_modules",
        "all-linear takes every linear layer but the head.",
        "lora_target_modules lora_target lora_modules lora_target_linear",
    ),
    ("adapter.modules_to_save", "", "lora_modules_to_save additional_target"),
    ("adapter.bias", "none, all or lora_only.", "lora_bias"),
    ("adapter.use_dora", "", "dora peft_use_dora"),
    ("adapter.use_rslora", "", "rslora peft_use_rslora"),
    (
        "data.train",
        "E.g. train: {path: rows.jsonl}.",
        "dataset datasets dataset_name dataset_path data_path train_file train_dataset",
    ),
    ("data.eval", "", "eval_dataset test_datasets validation_file validation_dataset val_dataset"),
    ("data.eval.fraction", "", "val_set_size val_size test_size validation_split_percentage split_dataset_ratio"),
    ("data.train.format", "", "dataset_format format_type type"),
    ("data.train.split", "", "dataset_split"),
    ("data.train.subset", "", "dataset_config dataset_config_name dataset_subset"),
    ("data.train.limit", "", "max_samples max_train_samples"),
    ("data.train.columns", "", "column_map column_mapping field_map"),
    ("data.template", "", "chat_template prompt_template prompt_style prompt_template_name conversation_template"),
    (
        "data.max_length",
        "",
        "cutoff_len max_seq_length max_seq_len max_sequence_length model_max_length seq_len seq_length "
        "sequence_len block_size",
    ),
    (
        "data.train_on",
        "answers is the default: prompts carry no loss.",
        "train_on_inputs train_on_input train_on_prompt mask_prompt mask_history train_on_completions "
        "train_on_responses_only",
    ),
    ("data.packing", "", "sample_packing neat_packing"),
    ("data.too_long", "", "excess_length_strategy truncation_strategy truncation"),
    ("training.num_train_epochs", "", "epochs num_epochs max_epochs n_epochs train_epochs"),
    ("training.max_steps", "", "steps max_iters max_train_steps num_steps iters"),
    ("training.learning_rate", "", "lr"),
    (
        "training.per_device_train_batch_size",
        "A step takes this times gradient_accumulation_steps rows on each device.",
        "batch_size micro_batch_size train_batch_size per_device_batch_size global_batch_size",
    ),
    ("training.per_device_eval_batch_size", "", "eval_batch_size"),
    (
        "training.gradient_accumulation_steps",
        "",
        "grad_accum grad_accumulation_steps gradient_accumulation gradient_accumulation_iters accumulate_grad_batches",
    ),
    ("training.lr_scheduler_type", "", "lr_scheduler scheduler scheduler_type lr_schedule"),
    ("training.warmup_steps", "Below 1 it is a share of all steps.", "warmup_ratio warmup num_warmup_steps"),
    ("training.optim", "", "optimizer optimizer_type optimiser"),
    ("training.max_grad_norm", "", "clip_grad_norm gradient_clipping grad_clip max_norm"),
    (
        "training.gradient_checkpointing",
        "",
        "use_gradient_checkpointing activation_checkpointing enable_activation_checkpointing grad_checkpoint",
    ),
    (
        "training.eval_steps",
        "Evaluation, saving and logging go by steps; below 1 the number is a share of all steps.",
        "eval_interval evals_per_epoch evaluation_strategy val_check_interval",
    ),
    (
        "training.save_steps",
        "Evaluation, saving and logging go by steps; below 1 the number is a share of all steps.",
        "save_interval saves_per_epoch",
    ),
    ("training.logging_steps", "", "log_interval log_every_n_steps steps_per_report"),
    ("training.early_stopping_patience", "", "early_stopping early_stopping_steps early_stop_interval"),
    ("training.report_to", "E.g. report_to: [wandb].", "use_wandb with_tracking tracker logger"),
    ("seed", "", "random_seed random_state"),
    ("output_dir", "The run's folder is <output_dir>/<name>.", "output_path save_dir out_dir adapter_path"),
    ("name", "", "run_id experiment_name job_name"),
    ("objective", "", "stage task training_type rl"),
]

OTHER_TOOLS: dict[str, Instead] = {
    name: Instead(ours, hint) for ours, hint, names in _ELSEWHERE for name in names.split()
}
