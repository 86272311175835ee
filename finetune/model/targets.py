"""What a name stands for that somebody wants to talk to: a run, an adapter or a whole model, here or on the Hub.

In goes the name as typed; out comes a `Target`: the folders, and the settings of the base it wants.
Answers in about a second and reads no weights; an adapter on the Hub is fetched into its cache.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from safetensors import safe_open

from finetune.errors import PlaceError, RecipeError
from finetune.model.access import fetch, find_cached, reaching
from finetune.model.base import load_config
from finetune.model.devices import choose_device
from finetune.model.heads import SCORE_WEIGHT, LabelSpace
from finetune.model.quantization import find_quantization
from finetune.model.tensor_files import check_tensor_file
from finetune.recipe.heads import HEAD_OF_OBJECTIVE, Head
from finetune.recipe.places import expand, is_here, is_local, reads_as_path
from finetune.recipe.schema import ModelSettings

__all__ = ["ADAPTER_WEIGHTS", "DeviceName", "Target", "describe_base", "find_run_dir", "find_target"]

DeviceName = Literal["auto", "cuda", "cpu"]
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_SCORE = f".{SCORE_WEIGHT}"
_OF_AN_ADAPTER = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
_QUANTIZATIONS = ("nf4", "fp4", "int8", "none")


@dataclass(frozen=True, slots=True)
class Target:
    """What a name turned out to be.

    Attributes:
        name: as typed.
        base: the model that is loaded: the adapter's base, or the whole model itself.
        adapter_dir: PEFT's folder; None for a whole model.
        saved_dir: the folder of tokenizer, template and generation config, where there is one.
        method: PEFT's name of the adapter's method, the run's for its whole model, None for any other.
        seed: draws the base of a run with `weights: random`.
        ends_with: what it gives: words, labels, the score of a reward model, or masked tokens restored.
        labels: of a classifier, where its folder names them.
    """

    name: str
    base: ModelSettings
    adapter_dir: Path | None
    saved_dir: Path | None
    method: str | None
    seed: int = 42
    ends_with: Head = "words"
    labels: LabelSpace | None = None

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores answers instead of giving any."""
        return self.ends_with == "score"


def find_target(target: str, *, quantization: str | None = None, device: DeviceName = "auto") -> Target:
    """Find out what a name stands for and which base it wants; reads no weights.

    Raises:
        PlaceError: there is nothing of that name, or it is unfinished or a pickle.
        RecipeError: no such quantization.
    """
    if quantization is not None and quantization not in _QUANTIZATIONS:
        raise RecipeError(f"--quantization: there is no `{quantization}`. There are: {', '.join(_QUANTIZATIONS)}.")
    folder = Path(expand(target))
    if not folder.is_dir():
        _refuse_missing_folder(target, folder)
        downloaded = _download_adapter(target)
        if downloaded is None:
            return Target(target, _choose_base(target, None, quantization, device), None, None, None)
        folder = downloaded
    run_dir = find_run_dir(folder)
    if run_dir is not None:
        return _open_run(target, run_dir, quantization, device)
    if (folder / "adapter_config.json").is_file():
        return _open_adapter(target, folder, quantization, device)
    if (folder / "config.json").is_file():
        base = _choose_base(str(folder), None, quantization, device)
        return Target(target, base, None, folder, None, ends_with=_find_ending_of_model(folder))
    raise PlaceError(
        f"{target} holds no run (resolved.json), no adapter (adapter_config.json) and no model (config.json).\n"
        f"  Runs lie in outputs/: python -m finetune.chat outputs/quickstart"
    )


def describe_base(model: ModelSettings, seed: int) -> str:
    """Name the weights that settings of `model` stand for: a folder, a Hub name, or random ones of a seed."""
    if model.weights == "random":
        return f"random weights of {model.config or model.model_name_or_path}, seed {seed}"
    assert model.model_name_or_path is not None
    name = model.model_name_or_path
    return str(Path(expand(name)).resolve()) if is_local(name) else name


def find_run_dir(folder: Path) -> Path | None:
    """Find the run that a folder is, or whose result it is."""
    places = [folder, *([folder.absolute().parent] if folder.absolute().name in ("adapter", "model") else [])]
    return next((place for place in places if (place / "resolved.json").is_file()), None)


def _open_run(target: str, run_dir: Path, quantization: str | None, device: DeviceName) -> Target:
    """Open a finished run: its own base, held as it was in training."""
    adapter_dir, model_dir = run_dir / "adapter", run_dir / "model"
    if not adapter_dir.is_dir() and not model_dir.is_dir():
        raise _unfinished(run_dir)
    resolved = json.loads((run_dir / "resolved.json").read_text("utf-8"))
    trained = ModelSettings.model_validate(resolved["model"])
    changes: dict[str, Any] = {"device": device, "quantization": quantization or trained.quantization}
    changes["backend"] = "transformers"  # whoever wants the other one asks for it
    # A kernel that is installed where the run was made need not be here.
    changes["attention"] = "auto" if trained.attention == "flash_attention_2" else trained.attention
    if model_dir.is_dir():
        changes |= {"model_name_or_path": str(model_dir), "weights": "pretrained", "config": None, "revision": None}
        changes["tokenizer_name_or_path"] = None
        settings = trained.model_copy(update=changes)
        method = str(resolved["adapter"]["method"])
        return Target(target, settings, None, model_dir, method, ends_with=_find_ending_of_model(model_dir))
    config = _read_adapter_config(adapter_dir)
    if trained.model_name_or_path is not None and trained.weights == "pretrained":
        # A base from the Hub leaves its commit in the adapter's config; without one it was a folder.
        changes["model_name_or_path"] = _find_base(
            trained.model_name_or_path, run_dir, is_path=not config.get("revision")
        )
        changes["revision"] = config.get("revision") or trained.revision
    settings = trained.model_copy(update=changes)
    ends_with = HEAD_OF_OBJECTIVE[resolved["objective"]]
    labels = _read_labels(adapter_dir) if ends_with == "labels" else None
    return Target(target, settings, adapter_dir, adapter_dir, _method(config), int(resolved["seed"]), ends_with, labels)


def _open_adapter(target: str, folder: Path, quantization: str | None, device: DeviceName) -> Target:
    """Open an adapter of any origin: its base is the one that PEFT's config names."""
    config = _read_adapter_config(folder)
    name = config.get("base_model_name_or_path")
    if not name:
        raise PlaceError(
            f"{folder}/adapter_config.json does not say which base the adapter stands on.\n"
            '  Write it there: "base_model_name_or_path": "OWNER/MODEL or a folder"'
        )
    base = _choose_base(_find_base(name, folder), config.get("revision"), quantization, device)
    ends_with = _find_ending_of_adapter(config, folder, base)
    labels = _read_labels(folder) if ends_with == "labels" else None
    return Target(target, base, folder, folder, _method(config), ends_with=ends_with, labels=labels)


def _choose_base(name: str, revision: str | None, quantization: str | None, device: DeviceName) -> ModelSettings:
    """Choose how to hold a base that no recipe speaks of: as it was saved, else nf4 on a GPU, none on a CPU."""
    place = ModelSettings(model_name_or_path=name, revision=revision)
    config = load_config(place)
    saved = find_quantization(config)
    if quantization is None and saved == "none":
        quantization = "nf4" if choose_device(device).type == "cuda" else "none"
    doubled = True
    if saved in ("nf4", "fp4"):
        doubled = bool(config.to_dict()["quantization_config"].get("bnb_4bit_use_double_quant"))
    changes = {"device": device, "quantization": quantization or saved, "double_quantization": doubled}
    return place.model_copy(update=changes)


def _find_base(name: str, folder: Path, *, is_path: bool = False) -> str:
    """Find the base an adapter names: a path is tried from here, then from each folder above the adapter's own."""
    if is_here(name):
        return name
    for parent in folder.resolve().parents:
        if not Path(name).is_absolute() and (parent / name / "config.json").is_file():
            return str(parent / name)
    if is_path or reads_as_path(name):
        raise PlaceError(
            f"The base model {name} of {folder} is not there.\n"
            "  It is a folder where the adapter was trained. Run the command from where that path leads to it,\n"
            f"  or write its place, or its name on the Hub, into {folder}: `base_model_name_or_path` in "
            "adapter_config.json,\n  `model_name_or_path` in a run's resolved.json."
        )
    return name


def _read_adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise PlaceError(f"{folder} holds no adapter_config.json, so it is no adapter's folder.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        if (folder / _PICKLE).is_file():
            raise PlaceError(
                f"{folder} has its weights in {_PICKLE}, a pickle, which could run code and is not opened.\n"
                f"  One you trust: load it with PEFT and save_pretrained it, which writes {ADAPTER_WEIGHTS}."
            )
        raise PlaceError(f"{folder} holds no {ADAPTER_WEIGHTS}.\n  Fetch or copy the whole folder.")
    check_tensor_file(folder / ADAPTER_WEIGHTS)
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError:  # of bytes that are no text too
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise PlaceError(f"{path} is no config of a PEFT adapter: JSON with a `peft_type`.\n  Fetch or copy it again.")
    return config


def _method(config: dict[str, Any]) -> str:
    return str(config["peft_type"]).lower()


def _find_ending_of_adapter(config: dict[str, Any], folder: Path, base: ModelSettings) -> Head:
    """Find what an adapter of any origin ends with: one number by a head without a bias is a reward model's."""
    task = config.get("task_type")
    if task is None:  # PEFT has no name for masked-language modelling
        classes = load_config(base).architectures or ()
        return "masked" if any(name.endswith("ForMaskedLM") for name in classes) else "words"
    if task != "SEQ_CLS":
        return "words"
    own = folder / "config.json"
    if own.is_file() and json.loads(own.read_text("utf-8")).get("problem_type"):
        return "labels"  # a run's classifier says so, one of a single number too
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys() if name.endswith(_SCORE)]  # noqa: SIM118
        others = any(".classifier." in name for name in tensors.keys())  # noqa: SIM118
    return "labels" if others or any(shape[0] > 1 for shape in shapes) else "score"


def _find_ending_of_model(folder: Path) -> Head:
    """Find what a whole model ends with: its config names the class it was saved as."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    classes = config.get("architectures") or ()
    if any(name.endswith("ForMaskedLM") for name in classes):
        return "masked"
    if not any(name.endswith("ForSequenceClassification") for name in classes):
        return "words"
    # A classifier says what kind of problem it solves; a reward model, one number, does not.
    return "labels" if config.get("problem_type") or len(config.get("id2label") or (0, 1)) > 1 else "score"


def _read_labels(folder: Path) -> LabelSpace | None:
    """Read what a classifier tells apart from the config beside its adapter; None where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text("utf-8"))
    if config.get("problem_type") == "regression":
        return LabelSpace(None)
    return LabelSpace(tuple(config["id2label"][str(place)] for place in range(len(config["id2label"]))))


def _unfinished(run_dir: Path) -> PlaceError:
    path = run_dir / "status.json"
    status = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    said = status.get("status", "never started")
    step = f" at step {status['step']}" if "step" in status else ""
    wait = "Wait until it is done, or, where no process is left: " if said == "running" else "Continue it: "
    return PlaceError(
        f"{run_dir} holds an unfinished run ({said}{step}): its adapter/ appears when it is done.\n"
        f"  {wait}the command it was started with, and --resume behind it."
    )


def _refuse_missing_folder(target: str, folder: Path) -> None:
    """Refuse what reads like a path and is none, before the Hub is asked for it."""
    if folder.is_file():
        raise PlaceError(f"{target} is a file; a run, an adapter or a model is a folder.\n  Name it: {folder.parent}")
    if reads_as_path(target) or (folder.parent.is_dir() and not _is_cached(target)):
        runs = sorted(str(path.parent) for path in folder.parent.glob("*/resolved.json"))
        known = f"  There are: {', '.join(runs[:6])}" if runs else "  Make a first one: make quickstart"
        raise PlaceError(f"{target}: there is no such folder.\n{known}")


def _is_cached(name: str) -> bool:
    return any(find_cached(name, filename) is not None for filename in ("config.json", "adapter_config.json"))


def _download_adapter(name: str) -> Path | None:
    """Download an adapter from the Hub into its cache; None where the repository is no adapter's."""
    is_known = find_cached(name, "adapter_config.json") is not None
    # A whole model in the cache is not asked for an adapter: offline there would be no answer.
    if not is_known and find_cached(name, "config.json") is not None:
        return None
    if fetch(name, "adapter_config.json") is None:
        return None
    with reaching(name):
        return Path(snapshot_download(name, allow_patterns=_OF_AN_ADAPTER))
