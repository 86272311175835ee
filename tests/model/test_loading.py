import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.errors import PlaceError, RecipeError
from finetune.model.generation import generate_answers, stream_answer
from finetune.model.loading import load_for_inference
from finetune.model.merging import to_logits
from finetune.model.targets import find_target
from tests.contracts.adapter_contract import check_adapter_contract
from tests.model.saved_runs import write_base, write_run

PROMPTS = [[1, 40, 41, 42, 43, 44], [1, 300, 301, 302]]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A project folder: a base in models/, a run in outputs/ that names it by a path from there."""
    project = tmp_path_factory.mktemp("project")
    write_base(project / "models" / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        write_run(project / "outputs" / "run", "models/base")
    return project


@pytest.fixture
def copied(place, tmp_path) -> Path:
    """A copy of the run that a test may spoil, beside its base."""
    shutil.copytree(place / "models", tmp_path / "models")
    shutil.copytree(place / "outputs" / "run", tmp_path / "outputs" / "run")
    return tmp_path / "outputs" / "run"


def test_the_saved_adapter_holds_to_what_other_tools_accept(place):
    check_adapter_contract(place / "outputs" / "run" / "adapter")


def test_what_other_tools_refuse_breaks_the_contract(place, copied):
    config_path = copied / "adapter" / "adapter_config.json"
    config = json.loads(config_path.read_text())
    for change in ({"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"r": 7}, {"target_modules": "all-linear"}):
        config_path.write_text(json.dumps(config | change))
        with pytest.raises(AssertionError):
            check_adapter_contract(copied / "adapter")
    config_path.write_text(json.dumps(config))
    (copied / "adapter" / "training_args.bin").write_bytes(b"")
    with pytest.raises(AssertionError, match="pickle"):
        check_adapter_contract(copied / "adapter")


def test_run_and_adapter_folder_of_a_run_are_the_same_model_held_as_in_training(place, monkeypatch):
    monkeypatch.chdir(place)
    run = load_for_inference("outputs/run")
    adapter = load_for_inference("outputs/run/adapter")
    assert run.base.quantization == adapter.base.quantization == "nf4"
    assert run.base.compute_dtype == torch.float32
    for one, other in zip(to_logits(run.model, PROMPTS), to_logits(adapter.model, PROMPTS), strict=True):
        assert torch.equal(one, other)
    assert run.description == "outputs/run: lora on models/base, nf4, float32 on cpu"
    assert run.tokenizer.chat_template
    assert run.eos_ids == [run.tokenizer.eos_token_id]
    assert not run.model.training


def test_a_relative_base_is_found_from_any_folder(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_target(str(place / "outputs" / "run")).base.model_name_or_path == str(place / "models" / "base")


def test_a_run_in_the_home_folder_is_found_by_its_tilde(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    assert find_target("~/outputs/run").adapter_dir == place / "outputs" / "run" / "adapter"
    assert find_target("~/models/base").base.model_name_or_path == str(place / "models" / "base")


def test_base_only_is_the_untouched_base_with_the_runs_template(place):
    run = str(place / "outputs" / "run")
    tuned, base = load_for_inference(run), load_for_inference(run, base_only=True)
    with tuned.model.disable_adapter():
        expected = to_logits(tuned.model, PROMPTS)
    found = to_logits(base.model, PROMPTS)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert not torch.allclose(to_logits(tuned.model, PROMPTS)[0], found[0], atol=0.1)
    assert base.tokenizer.chat_template == tuned.tokenizer.chat_template


def test_an_adapter_without_a_run_is_put_on_an_unquantized_base_on_a_cpu_unless_asked(place, copied):
    alone = copied.parents[1] / "adapter"
    shutil.move(copied / "adapter", alone)
    assert find_target(str(alone)).base.quantization == "none"
    assert find_target(str(alone), quantization="nf4").base.quantization == "nf4"
    assert find_target(str(alone)).method == "lora"
    with pytest.raises(RecipeError, match="there is no `nf5`"):
        find_target(str(alone), quantization="nf5")


def test_a_whole_model_is_opened_as_it_is(place):
    speaker = load_for_inference(str(place / "models" / "base"))
    assert speaker.tokenizer.chat_template is None
    assert speaker.base.quantization == "none"
    assert speaker.target.method is None


def test_the_model_of_a_full_run_is_opened_from_the_run(place, copied):
    shutil.rmtree(copied / "adapter")
    shutil.copytree(place / "models" / "base", copied / "model")
    resolved = json.loads((copied / "resolved.json").read_text())
    resolved["model"]["quantization"] = "none"
    resolved["adapter"]["method"] = "full"
    (copied / "resolved.json").write_text(json.dumps(resolved))
    found = find_target(str(copied))
    assert (found.method, found.adapter_dir, found.base.quantization) == ("full", None, "none")
    assert found.base.model_name_or_path == str(copied / "model")
    assert find_target(str(copied / "model")) == find_target(str(copied)).__class__(
        str(copied / "model"), found.base, None, found.saved_dir, "full", found.seed
    )


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"status": "running", "step": 3}, r"unfinished run \(running at step 3\).*Wait until it is done"),
        ({"status": "interrupted", "step": 3}, r"unfinished run \(interrupted at step 3\).*Continue it: .*--resume"),
    ],
)
def test_an_unfinished_run_says_its_state_and_how_to_go_on(copied, status, says):
    shutil.rmtree(copied / "adapter")
    (copied / "status.json").write_text(json.dumps(status))
    with pytest.raises(PlaceError, match=f"(?s){says}"):
        load_for_inference(str(copied))


def test_a_tensor_that_is_not_finite_is_refused_by_name(copied):
    path = copied / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    broken = sorted(tensors)[3]
    tensors[broken][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(PlaceError, match=f"{broken} holds numbers that are not finite"):
        load_for_inference(str(copied))


def test_a_pickled_adapter_is_not_opened(copied):
    (copied / "adapter" / "adapter_model.safetensors").rename(copied / "adapter" / "adapter_model.bin")
    with pytest.raises(PlaceError, match=r"adapter_model.bin, a pickle.*not opened"):
        load_for_inference(str(copied))


def test_an_adapter_with_a_tensor_missing_is_refused(copied):
    path = copied / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(PlaceError, match=r"does not fit .*is not in the file"):
        load_for_inference(str(copied))


@pytest.mark.parametrize("shape", [{"num_hidden_layers": 1}, {"hidden_size": 32}])
def test_an_adapter_on_another_base_is_refused(copied, shape):
    base = copied.parents[1] / "models" / "base"
    shutil.rmtree(base)
    write_base(base, **shape)
    with pytest.raises(PlaceError, match="does not fit"):
        load_for_inference(str(copied))


def test_a_base_that_is_gone_is_named_with_the_ways_out(copied):
    shutil.rmtree(copied.parents[1] / "models")
    with pytest.raises(PlaceError, match=r"(?s)The base model models/base of .*/run is not there.*resolved.json"):
        find_target(str(copied))


def test_what_is_no_run_no_adapter_and_no_model_is_refused(place, tmp_path, monkeypatch):
    with pytest.raises(PlaceError, match="holds no run"):
        find_target(str(tmp_path))
    monkeypatch.chdir(place)
    with pytest.raises(PlaceError, match=r"(?s)outputs/rum: there is no such folder.*There are: outputs/run"):
        find_target("outputs/rum")
    with pytest.raises(PlaceError, match="is a file"):
        find_target("outputs/run/resolved.json")


def test_a_hub_name_that_is_not_here_offline_names_the_ways_out():
    with pytest.raises(PlaceError, match=r"(?s)someone/an-adapter.*hf download"):
        find_target("someone/an-adapter")


PLAIN_PEFT = f"""
import sys
import bitsandbytes, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
base_dir, adapter_dir, out = sys.argv[1:]
base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32, device_map={{"": "cpu"}},
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32))
model = PeftModel.from_pretrained(base, adapter_dir).eval()
def logits():
    with torch.no_grad():
        return [model(torch.tensor([p])).logits[0] for p in {PROMPTS!r}]
for module in model.modules():
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        module.support_avx512bf16_for_cpu = False
exact = logits()
for module in model.modules():
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        module.support_avx512bf16_for_cpu = bitsandbytes.functional.has_avx512bf16()
assert not any(name.split(".")[0] == "finetune" for name in sys.modules)
torch.save({{"exact": exact, "as_it_comes": logits()}}, out)
"""


def test_plain_peft_without_this_package_gives_the_same_logits(place, tmp_path):
    run = place / "outputs" / "run"
    ours = to_logits(load_for_inference(str(run)).model, PROMPTS)
    subprocess.run(
        [sys.executable, "-c", PLAIN_PEFT, place / "models" / "base", run / "adapter", tmp_path / "logits"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    theirs = torch.load(tmp_path / "logits", weights_only=True)
    for mine, exact, as_it_comes in zip(ours, theirs["exact"], theirs["as_it_comes"], strict=True):
        assert torch.allclose(mine, exact, atol=1e-6, rtol=0)
        # Where the CPU has AVX512-BF16, bitsandbytes' kernel for inference rounds its products to bfloat16: measured
        # 0.04 apart, of logits that spread by 0.8. Elsewhere the two are one path.
        assert torch.allclose(mine, as_it_comes, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "prompt_tuning", "num_virtual_tokens": 4},
        {"method": "prefix_tuning", "num_virtual_tokens": 4},
        {"method": "ia3"},
        {"method": "lora", "r": 4, "trainable_token_indices": [5, 6]},
    ],
    ids=str,
)
def test_an_adapter_of_any_method_opens_and_answers_in_a_batch_as_alone(adapter, place, tmp_path):
    speaker = load_for_inference(str(write_run(tmp_path / "run", place / "models" / "base", adapter=adapter)))
    how = {"stop_ids": speaker.eos_ids, "max_new_tokens": 6}
    together = generate_answers(speaker.model, speaker.tokenizer, PROMPTS, batch_size=2, **how)
    alone = [stream_answer(speaker.model, speaker.tokenizer, ids, shown=False, **how) for ids in PROMPTS]
    assert together == alone
