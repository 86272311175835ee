"""The referee of the speed benchmark: every contender's adapter on the same held-out rows, by the same plain code.

    python -m benchmarks.speed_referee --model FOLDER --tokenizer FOLDER --rows FILE --result FILE NAME=ADAPTER …

In go adapters; out comes a JSON object, name -> held-out loss. Of rows of SFT that is the mean over all answer tokens
in nats; of pairs it is DPO's loss with beta 0.1 against the base. Each row is computed alone, so that no padding
is in it. Loads with transformers, PEFT and bitsandbytes alone: neither ours nor a trainer has a hand in it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from benchmarks.speed_rows import to_texts

BETA = 0.1


def measure_answer(model: Any, tokenizer: Any, prompt: str, answer: str, max_length: int) -> tuple[float, int]:
    """Measure an answer behind its prompt: its log-probability in nats, and its tokens."""
    whole = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id][:max_length]
    start = min(len(tokenizer(prompt)["input_ids"]), len(whole) - 1)
    ids_T = torch.tensor(whole, device=model.device)
    logits_TV = model(input_ids=ids_T[None]).logits[0].float()
    picked_T = logits_TV[start - 1 : -1].log_softmax(-1).gather(1, ids_T[start:, None])
    return float(picked_T.sum()), len(whole) - start


def measure_loss(model: Any, tokenizer: Any, rows: Sequence[dict[str, str]], max_length: int) -> float:
    """Measure the loss of rows: of answers, or of pairs."""
    texts = [to_texts(row) for row in rows]
    if len(texts[0]) == 1:
        measured = [measure_answer(model, tokenizer, *text, max_length) for (text,) in texts]
        return -sum(logp for logp, _ in measured) / sum(tokens for _, tokens in measured)

    def margin(pair: list[tuple[str, str]]) -> float:
        (chosen, _), (rejected, _) = (measure_answer(model, tokenizer, *text, max_length) for text in pair)
        return chosen - rejected

    policy = torch.tensor([margin(pair) for pair in texts])
    with model.disable_adapter():
        reference = torch.tensor([margin(pair) for pair in texts])
    return float(-torch.nn.functional.logsigmoid(BETA * (policy - reference)).mean())


def main() -> None:
    """Measure every adapter."""
    parser = argparse.ArgumentParser()
    for name in ("model", "tokenizer", "rows", "result"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("adapters", nargs="+", metavar="NAME=FOLDER")
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    rows = json.loads(given.rows.read_text(encoding="utf-8"))
    losses = {}
    model: Any = AutoModelForCausalLM.from_pretrained(
        given.model, quantization_config=nf4, dtype=torch.bfloat16, device_map={"": given.device}
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # repacked weights want widths that stories260K has not got
    for number, adapter in enumerate(given.adapters):
        name, _, folder = adapter.partition("=")
        if number == 0:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        else:
            model.load_adapter(folder, adapter_name=name)
        model.set_adapter(name)
        model.eval()
        with torch.inference_mode():
            losses[name] = measure_loss(model, tokenizer, rows, given.max_length)
    given.result.write_text(json.dumps(losses), encoding="utf-8")


if __name__ == "__main__":
    main()
