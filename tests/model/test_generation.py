import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from finetune.model.generation import generate_answers, stream_answer

WORDS = ["<s>", "</s>", "<pad>", "<unk>", *[f"w{index}" for index in range(60)]]
EOS, PAD = 1, 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def build_model(**overrides: int) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
    model = MistralForCausalLM(MistralConfig(**(sizes | overrides)))
    with torch.no_grad():
        # Random layers of the usual size say the same word for ever; larger ones wander.
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


@pytest.fixture
def model() -> Iterator[PreTrainedModel]:
    yield build_model()


PROMPTS = [[0, 5, 6, 7], [0, 9], [0, 20, 21, 22, 23, 24, 25, 26], [0, 33, 34], [0, 40, 41, 42, 43]]


def continue_by_hand(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def to_words(ids: list[int]) -> str:
    return " ".join(WORDS[token] for token in ids if token > 3)


def test_answers_of_a_padded_batch_are_those_of_each_prompt_alone(model, tokenizer):
    expected = [to_words(continue_by_hand(model, prompt, 12)) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    for batch_size in (1, 2, 5, 16):
        assert (
            generate_answers(model, tokenizer, PROMPTS, stop_ids=[], max_new_tokens=12, batch_size=batch_size)
            == expected
        )


def test_an_answer_is_cut_at_the_first_stop_token_even_if_that_token_is_an_ordinary_word(model, tokenizer):
    whole = continue_by_hand(model, PROMPTS[0], 12)
    stop = whole[4]
    end = whole.index(stop)
    answers = generate_answers(model, tokenizer, PROMPTS, stop_ids=[stop, EOS], max_new_tokens=12, batch_size=5)
    assert answers[0] == to_words(whole[:end])
    assert all(WORDS[stop] not in answer.split() for answer in answers)


def test_no_questions_give_no_answers(model, tokenizer):
    assert generate_answers(model, tokenizer, [], stop_ids=[EOS], max_new_tokens=4, batch_size=4) == []


def test_the_bases_own_sampling_defaults_do_not_leak_and_are_put_back(model, tokenizer):
    own = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=5.0, max_length=30)
    expected = generate_answers(model, tokenizer, PROMPTS, stop_ids=[], max_new_tokens=12, batch_size=5)
    model.generation_config = own
    assert generate_answers(model, tokenizer, PROMPTS, stop_ids=[], max_new_tokens=12, batch_size=5) == expected
    assert model.generation_config is own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_training_answers_and_goes_on_training_as_it_was(tokenizer, dtype):
    peft_model = get_peft_model(
        build_model().to(dtype),
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_dropout=0.5),
        autocast_adapter_dtype=True,
    )
    peft_model.config.use_cache = False
    peft_model.gradient_checkpointing_enable({"use_reentrant": False})
    peft_model.train()
    peft_model.get_base_model().model.norm.eval()  # a part that someone left in evaluation mode
    modes = {name: module.training for name, module in peft_model.named_modules()}

    first, second = (
        generate_answers(peft_model, tokenizer, PROMPTS, stop_ids=[EOS], max_new_tokens=8, batch_size=2)
        for _ in range(2)
    )

    assert first == second  # no dropout
    assert {name: module.training for name, module in peft_model.named_modules()} == modes
    assert peft_model.config.use_cache is False
    assert peft_model.is_gradient_checkpointing
    with torch.autocast("cpu", torch.bfloat16):
        loss = peft_model(torch.tensor([PROMPTS[2]]), labels=torch.tensor([PROMPTS[2]])).loss
    loss.backward()
    assert all(p.grad is not None for name, p in peft_model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("stops", [False, True], ids=["as it should", "with an error"])
def test_a_model_with_a_way_of_training_of_its_own_is_told_that_it_trains_again(tokenizer, stops):
    peft_model = get_peft_model(build_model(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    peft_model.gradient_checkpointing_enable({"use_reentrant": False})
    peft_model.train()
    core = peft_model.get_base_model()
    core.model.norm.eval()  # a part that someone left in evaluation mode
    modes = {name: module.training for name, module in peft_model.named_modules()}
    layers = [module for module in core.modules() if hasattr(module, "gradient_checkpointing")]
    generate = core.generate

    # As Unsloth does it on a GPU: generating switches recomputation off, and only `for_training` on again.
    def generate_without_recomputing(*args, **kwargs):
        for layer in layers:
            layer.gradient_checkpointing = False
        return generate(*args, **kwargs)

    def train_again():
        peft_model.train()
        for layer in layers:
            layer.gradient_checkpointing = True

    core.generate, core.for_training = generate_without_recomputing, train_again
    prompt = [0, 10_000] if stops else PROMPTS[0]
    with pytest.raises(IndexError) if stops else nullcontext():
        generate_answers(peft_model, tokenizer, [prompt], stop_ids=[EOS], max_new_tokens=4, batch_size=1)

    assert len(layers) > 2
    assert all(layer.gradient_checkpointing for layer in layers)
    assert {name: module.training for name, module in peft_model.named_modules()} == modes


def test_modes_are_put_back_when_generating_stops_with_an_error(model, tokenizer):
    model.train()
    with pytest.raises(IndexError):
        generate_answers(model, tokenizer, [[0, 10_000]], stop_ids=[EOS], max_new_tokens=4, batch_size=1)
    assert model.training


def test_a_streamed_answer_is_printed_as_returned_without_prompt_and_stop_token(model, tokenizer, capsys):
    whole = continue_by_hand(model, PROMPTS[0], 12)
    stop = whole[4]
    text = stream_answer(model, tokenizer, PROMPTS[0], stop_ids=[stop], max_new_tokens=12)
    assert text == to_words(whole[: whole.index(stop)])
    assert capsys.readouterr().out == text + "\n"


def test_nothing_is_printed_when_the_answer_is_not_to_be_shown(model, tokenizer, capsys):
    assert stream_answer(model, tokenizer, PROMPTS[0], stop_ids=[EOS], max_new_tokens=3, shown=False)
    assert capsys.readouterr().out == ""


def test_temperature_zero_repeats_itself_and_a_high_one_does_not(model, tokenizer):
    def answers(temperature: float) -> set[str]:
        return {
            stream_answer(
                model, tokenizer, PROMPTS[0], stop_ids=[], max_new_tokens=12, temperature=temperature, shown=False
            )
            for _ in range(4)
        }

    assert len(answers(0.0)) == 1
    assert len(answers(5.0)) == 4


@pytest.mark.slow
def test_240_questions_take_a_5m_model_less_than_ten_seconds(tokenizer):
    model = build_model(hidden_size=256, intermediate_size=704, num_hidden_layers=6, vocab_size=2048)
    prompts = [[0, *(4 + (index * step) % 60 for step in range(30 + index % 40))] for index in range(240)]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other on a busy machine take ten times as long
    start = time.process_time()
    generate_answers(model, tokenizer, prompts, stop_ids=[EOS], max_new_tokens=20, batch_size=16)
    seconds = time.process_time() - start
    torch.set_num_threads(num_threads)
    print(f"240 questions: {seconds:.1f} s of one core")
    assert seconds < 10
