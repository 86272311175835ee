"""Greedy answers of saved adapters, opened by transformers and PEFT alone, with nothing but what the folder holds.

`python -m tests.unsloth.plain_answers PROMPTS.json ADAPTER=nf4|none ...`: the last line of standard output is an object
with the answers of each adapter. No module of this repository is imported.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

TOKENS = 24
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


def main(arguments: list[str]) -> None:
    prompts_path, *adapters = arguments
    prompts = json.loads(Path(prompts_path).read_text(encoding="utf-8"))
    found = {}
    for one in adapters:
        folder, _, quantization = one.rpartition("=")
        found[folder] = answer(folder, prompts, NF4 if quantization == "nf4" else None)
    ours = [name for name in sys.modules if name.split(".")[0] in ("finetune", "unsloth")]
    print(json.dumps({"answers": found, "ours": ours}))


def answer(folder: str, prompts: list[str], quantization: BitsAndBytesConfig | None) -> list[str]:
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=quantization)
    model = PeftModel.from_pretrained(model, folder).eval()
    config = GenerationConfig.from_pretrained(folder)
    answers = []
    for prompt in prompts:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs, generation_config=config, do_sample=False, max_new_tokens=TOKENS)
        [new] = ids[:, inputs["input_ids"].shape[1] :].tolist()
        answers.append(tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return answers


if __name__ == "__main__":
    main(sys.argv[1:])
