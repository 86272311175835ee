"""Files that are meant to do harm, offered wherever weights are opened: none is executed, and each refused by name."""

import json
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.errors import FinetuneError, PlaceError, RecipeError
from finetune.model.base import check_base, load_base
from finetune.model.continuing import find_trained_adapter
from finetune.model.loading import load_for_inference
from finetune.model.scoring import check_scorer, load_scorer
from finetune.model.several import load_adapter_set
from finetune.model.targets import find_target
from finetune.model.tensor_files import check_tensor_file
from finetune.recipe.schema import ModelSettings
from tests.model.saved_runs import write_base, write_run

PICKLES = ("adapter_model.bin", "pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt",
           "rng_state.pth", "scaler.pt", "model.pkl", "tokenizer.pkl")  # fmt: skip


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, sung: Path) -> None:
        self._sung = sung

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self._sung,)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a run on it."""
    project = tmp_path_factory.mktemp("project")
    write_run(project / "run", write_base(project / "base"), quantization="none")
    return project


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.copytree(place / "base", tmp_path / "base")
    return tmp_path


@pytest.fixture
def sung(tmp_path: Path) -> Path:
    return tmp_path / "the canary has sung"


def write_canary(path: Path, sung: Path) -> None:
    torch.save({"weight": Canary(sung)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


OPENERS = {
    "chat, evaluate, merge, export": lambda place: load_for_inference(str(place / "run"), device="cpu"),
    "an adapter by itself": lambda place: load_for_inference(str(place / "run" / "adapter"), device="cpu"),
    "several adapters": lambda place: load_adapter_set(str(place / "run"), {"two": str(place / "run")}, device="cpu"),
    "a reward model": lambda place: load_scorer(str(place / "run"), device="cpu"),
    "adapter.init_from": lambda place: find_trained_adapter(
        str(place / "run"), ModelSettings(model_name_or_path=str(place / "base"), quantization="none", device="cpu"), 42
    ),
}


def test_the_canary_sings_where_a_pickle_is_trusted(sung):
    pickle.loads(pickle.dumps(Canary(sung)))
    assert sung.exists()


def test_pickles_beside_the_weights_are_passed_over(copied, sung):
    for name in PICKLES:
        write_canary(copied / "run" / "adapter" / name, sung)
        write_canary(copied / "base" / name, sung)
    load_for_inference(str(copied / "run"), device="cpu")
    assert not sung.exists()


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS.keys())
def test_an_adapter_that_is_a_pickle_is_refused_by_name_and_not_opened(opener, copied, sung):
    (copied / "run" / "adapter" / "adapter_model.safetensors").unlink()
    write_canary(copied / "run" / "adapter" / "adapter_model.bin", sung)
    with pytest.raises(FinetuneError, match=r"adapter_model\.bin, a pickle, which could run code"):
        opener(copied)
    assert not sung.exists()


def settings_of(folder: Path, **more: object) -> ModelSettings:
    fields = {"quantization": "none", "compute_dtype": "float32", "device": "cpu"} | more
    return ModelSettings(model_name_or_path=str(folder), **fields)


def test_a_base_that_is_a_pickle_is_refused_unless_the_recipe_takes_it_and_then_runs_no_code(copied, sung):
    base = copied / "base"
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    write_canary(base / "pytorch_model.bin", sung)
    for ask in (check_base, load_base):
        with pytest.raises(PlaceError, match=r"pickles .* are not opened") as refusal:
            ask(settings_of(base))
    assert "model.allow_pickled_weights=true" in str(refusal.value)
    check_base(settings_of(base, allow_pickled_weights=True))
    with pytest.raises(PlaceError, match="holds more than tensors, and nothing of it was run"):
        load_base(settings_of(base, allow_pickled_weights=True))
    assert not sung.exists()

    torch.save(weights, base / "pytorch_model.bin")
    loaded = load_base(settings_of(base, allow_pickled_weights=True)).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def to_file(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def to_header(*offsets: tuple[int, int]) -> bytes:
    tensors = {f"t{number}": {"dtype": "F32", "shape": [2], "data_offsets": one} for number, one in enumerate(offsets)}
    return json.dumps(tensors).encode()


MALFORMED = {
    "empty": b"",
    "header of 2^60 bytes": to_file(b"{}", 2**60),
    "header beyond the end": to_file(b"{}", 1000),
    "overlapping tensors": to_file(to_header((0, 8), (4, 12)), data=bytes(12)),
    "a tensor beyond the end": to_file(to_header((0, 8)), data=bytes(4)),
    "no JSON": to_file(b"\xff" * 16),
    "a pickle by another name": pickle.dumps({"weight": 1}),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_safetensors_file_is_refused_by_name(content, copied):
    adapter = copied / "run" / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(content)
    for opener in OPENERS.values():
        with pytest.raises(FinetuneError) as refusal:
            opener(copied)
        assert f"{adapter} is no whole safetensors file" in str(refusal.value)
    base = copied / "base" / "model.safetensors"
    base.write_bytes(content)
    with pytest.raises(PlaceError) as refusal:
        check_base(settings_of(copied / "base"))
    assert str(refusal.value).startswith(f"{base} is no whole safetensors file")


def test_a_header_of_a_hundred_megabytes_costs_no_memory(tmp_path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000))
        file.truncate(99_000_008)  # a hole in the file: it takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PlaceError, match="its header takes 99,000,000 bytes"):
        check_tensor_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/x.safetensors", "pytorch_model.bin", 7])
def test_an_index_that_leads_elsewhere_is_refused(shard, copied):
    base = copied / "base"
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors", "b": shard}}))
    with pytest.raises(PlaceError, match=r"model\.safetensors.index.json (names|is no index)"):
        check_base(settings_of(base))
    index.write_text("{")
    with pytest.raises(PlaceError, match="is no index of weights"):
        check_base(settings_of(base))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": 1}', "\x00"])
def test_a_config_that_is_none_is_refused_by_name(text, copied):
    config = copied / "run" / "adapter" / "adapter_config.json"
    config.write_text(text)
    with pytest.raises(PlaceError, match=r"adapter_config\.json is no config of a PEFT adapter"):
        find_target(str(copied / "run"))


def test_code_beside_a_base_is_not_run_unless_the_recipe_trusts_a_commit_of_it(copied, sung):
    base = copied / "base"
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "made_up", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "code.py").write_text(f"from pathlib import Path\nPath({str(sung)!r}).touch()\n")
    for ask in (check_base, load_base):
        with pytest.raises(RecipeError, match=r"custom code|trust_remote_code|made_up"):
            ask(settings_of(base))
    assert not sung.exists()


def test_a_scorer_that_is_a_pickle_is_refused_before_a_weight_is_read(copied, sung):
    (copied / "run" / "adapter" / "adapter_model.safetensors").unlink()
    write_canary(copied / "run" / "adapter" / "adapter_model.bin", sung)
    with pytest.raises(PlaceError, match=r"^`rewards`: .* a pickle"):
        check_scorer(str(copied / "run"), device="cpu")
    assert not sung.exists()
