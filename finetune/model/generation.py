"""Answers from a model: many at once for scores, or one that streams to a person.

In go prompts as token ids (`data.rendering` made them) and the ids that end an answer; out comes
text. The model may stand in the middle of its training: its mode and its own generation defaults are
put back as they were found.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from finetune.errors import RecipeError
from finetune.model.base import find_position_limit

__all__ = ["generate_answers", "share_positions", "stream_answer"]

_USUAL_NEW_TOKENS = 256


def generate_answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """Answer each prompt greedily, in the order given.

    Prompts of like length share a batch, longest first, so that a batch too large for the device
    shows at once; padding stands on the left, where no answer continues from it. 240 questions with
    answers of 20 tokens take 4 s of one CPU core with a 5M Mistral (tests/model/test_generation.py).

    Args:
        model: any causal model, with or without an adapter, in any mode.
        tokenizer: its tokenizer, with a pad token.
        prompts: token ids, up to where the answer starts.
        stop_ids: tokens that end an answer; none of them is in the text returned.
        max_new_tokens: tokens of an answer at most.
        batch_size: prompts answered at once.

    Returns:
        The answers as text, without special tokens.
    """
    config = _to_config(tokenizer, stop_ids, max_new_tokens, temperature=0.0)
    answers = [""] * len(prompts)
    with _ready_to_generate(model):
        for batch in _to_batches(prompts, batch_size, only_alike=_has_virtual_tokens(model)):
            new_ids = _generate(model, [prompts[index] for index in batch], config)
            for index, ids in zip(batch, new_ids, strict=True):
                answers[index] = _to_text(tokenizer, ids, stop_ids)
    return answers


def stream_answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[int],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    shown: bool = True,
) -> str:
    """Answer one prompt, printing each word to stdout as soon as it is whole.

    Args:
        model: any causal model, with or without an adapter.
        tokenizer: its tokenizer.
        prompt_ids: the conversation, up to where the answer starts.
        stop_ids: tokens that end the answer.
        max_new_tokens: tokens of the answer at most.
        temperature: 0 takes the likeliest token each time; 1 samples from the model's own distribution.
        shown: False prints nothing.

    Returns:
        The same text, without special tokens.
    """
    streamer = _AnswerStreamer(tokenizer, stop_ids) if shown else None
    config = _to_config(tokenizer, stop_ids, max_new_tokens, temperature)
    with _ready_to_generate(model):
        [ids] = _generate(model, [prompt_ids], config, streamer)
    return _to_text(tokenizer, ids, stop_ids)


class _AnswerStreamer(TextStreamer):
    """Transformers' printer of words, without the prompt and without the token that ends the answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._stop_ids = frozenset(stop_ids)

    def put(self, value: Tensor) -> None:
        """Take the next token; a stop token that the tokenizer does not call special would be printed."""
        if self.next_tokens_are_prompt or int(value) not in self._stop_ids:
            super().put(value)


def share_positions(config: PreTrainedConfig, max_new_tokens: int | None) -> tuple[int | None, int]:
    """Share a model's positions between a prompt and its answer.

    Args:
        config: the model's.
        max_new_tokens: tokens of an answer as asked for; None takes 256, or half the positions if that is less.

    Returns:
        Tokens of a prompt at most, None where nothing limits them; and tokens of an answer at most.

    Raises:
        RecipeError: the answer asked for leaves no room for a prompt.
    """
    limit = find_position_limit(config)
    if limit is None:
        return None, max_new_tokens or _USUAL_NEW_TOKENS
    answer = max_new_tokens or min(_USUAL_NEW_TOKENS, limit // 2)
    if answer >= limit:
        raise RecipeError(
            f"--max-new-tokens {answer}: the model has positions for {limit} tokens, prompt and answer together.\n"
            f"  Ask for fewer: --max-new-tokens {limit // 2}"
        )
    return limit - answer, answer


def _to_batches(prompts: Sequence[list[int]], batch_size: int, *, only_alike: bool) -> list[list[int]]:
    """Sort prompts by length, longest first, into batches of their indices; `only_alike`: of one length each."""
    batches: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True):
        fits = bool(batches) and len(batches[-1]) < batch_size
        if fits and (not only_alike or len(prompts[batches[-1][0]]) == len(prompts[index])):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _has_virtual_tokens(model: PreTrainedModel | PeftModel) -> bool:
    """Whether learned vectors stand in front of the text: padding between the two would move them apart."""
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning


def _to_config(
    tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], max_new_tokens: int, temperature: float
) -> GenerationConfig:
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        **({"do_sample": False} | sampling),
    )


def _generate(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
    streamer: TextStreamer | None = None,
) -> list[list[int]]:
    """Continue a batch of prompts; what comes back are the new ids alone."""
    width = max(len(prompt) for prompt in prompts)
    ids_BT = torch.full((len(prompts), width), config.pad_token_id)
    attention_mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask_BT[row, width - len(prompt) :] = 1
    output_BT = model.generate(
        input_ids=ids_BT.to(model.device),
        attention_mask=attention_mask_BT.to(model.device),
        generation_config=config,
        streamer=streamer,
    )
    new_ids: list[list[int]] = output_BT[:, width:].tolist()
    return new_ids


def _to_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    end = next((position for position, token in enumerate(ids) if token in stop_ids), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)


@contextmanager
def _ready_to_generate(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Evaluation mode, products in the weights' own 16-bit type as in training, and nobody else's defaults.

    In evaluation mode gradient checkpointing does not act, so the cache may be used although the
    model's config says otherwise while it trains. Every module gets its own mode back, since parts of
    a model in training may have been left in evaluation mode on purpose.

    A base's generation_config fills whatever ours leaves open (transformers 5.17), and a
    `temperature` of its own beside greedy decoding is a warning at every call: it is set aside.
    """
    core = model.get_base_model() if isinstance(model, PeftModel) else model
    modes = [(module, module.training) for module in model.modules()]
    defaults = core.generation_config
    weights_dtype = core.get_input_embeddings().weight.dtype
    try:
        model.eval()
        core.generation_config = GenerationConfig()
        with (
            warnings.catch_warnings(),
            torch.autocast(model.device.type, weights_dtype, enabled=weights_dtype != torch.float32),
        ):
            # PEFT's prompt methods count the positions themselves, from their first vector on.
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            yield
    finally:
        core.generation_config = defaults
        # Unsloth's way of generating switches recomputation off on a GPU, and this on again.
        if (train_again := getattr(model, "for_training", None)) is not None:
            train_again()
        for module, training in modes:
            module.training = training
