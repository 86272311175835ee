"""Adapters made into one: held to the arithmetic of their changes, and to references written here."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.errors import PlaceError, RecipeError
from finetune.model.composable import Manner, check_composable
from finetune.model.composition import compose_adapters
from finetune.model.loading import attach_saved_adapter, load_for_inference
from finetune.model.merging import to_logits
from finetune.model.targets import find_target
from finetune.recipe.composing import HOWS
from tests.model.saved_runs import write_base, write_run

ADAPTERS = {
    "one": {"method": "lora", "r": 4, "lora_alpha": 8},
    "two": {"method": "lora", "r": 4, "lora_alpha": 4},
    "wide": {"method": "lora", "r": 9, "lora_alpha": 9, "use_rslora": True},
    "widest": {"method": "lora", "r": 48, "lora_alpha": 48},  # k_proj and v_proj have 32 outputs
    "attention": {"method": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]},
    "dora": {"method": "lora", "r": 4, "use_dora": True},
    "first_layer": {"method": "lora", "r": 4, "layers_to_transform": [0], "target_modules": ["q_proj"]},
    "ia3": {"method": "ia3"},
    "other_ia3": {"method": "ia3"},
    "small_ia3": {"method": "ia3", "target_modules": ["k_proj"], "feedforward_modules": []},
    "bitfit": {"method": "bitfit"},
}
SCALES = {"one": 2.0, "two": 1.0, "wide": 9 / math.sqrt(9), "widest": 1.0, "attention": 8 / 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("composition")
    base = write_base(place / "base")
    written = {
        name: write_run(place / name, base, adapter=fields, quantization="none") for name, fields in ADAPTERS.items()
    }
    for seed, name in enumerate(ADAPTERS):  # no two alike
        path = written[name] / "adapter" / "adapter_model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        moved = {key: t + 0.1 * torch.randn(t.shape, generator=generator) for key, t in load_file(path).items()}
        save_file(moved, path, metadata={"format": "pt"})
    return written


@pytest.fixture
def make(runs, tmp_path):
    """Compose runs by name into a folder."""

    def make(*names: str, how: str = "cat", weights: tuple[float, ...] | None = None, **rest: object) -> Path:
        folder = tmp_path / f"{how}_{len(list(tmp_path.iterdir()))}"
        manner = Manner(how, weights or (1 / len(names),) * len(names), **rest)
        compose_adapters([find_target(str(runs[name])) for name in names], manner, folder)
        return folder

    return make


def read_matrices(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B of each layer."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = sorted({key.partition(".lora_")[0] for key in tensors})
    return {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names}


def read_changes(folder: Path, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """What an adapter adds to each layer's weight: scale B A."""
    return {name: scale * B @ A for name, (A, B) in read_matrices(folder).items()}


@pytest.fixture(scope="module")
def changes(runs) -> dict[str, dict[str, torch.Tensor]]:
    return {name: read_changes(runs[name] / "adapter", scale) for name, scale in SCALES.items()}


def add(changes, names, weights) -> dict[str, torch.Tensor]:
    layers = sorted({layer for name in names for layer in changes[name]})
    return {
        layer: sum(w * changes[name][layer] for name, w in zip(names, weights, strict=True) if layer in changes[name])
        for layer in layers
    }


def assert_same(found, expected, tolerance=1e-6) -> None:
    assert found.keys() == expected.keys()
    for layer in expected:
        assert torch.allclose(found[layer], expected[layer], atol=tolerance), layer


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (("one", "two"), (0.5, 0.5)),
        (("one", "two"), (1.0, -0.25)),
        (("wide", "one"), (0.5, 1.0)),  # rsLoRA's scaling, and other ranks
        (("one", "attention", "two"), (0.25, 1.0, 2.0)),  # one of them has fewer layers
    ],
)
def test_cat_is_the_weighted_sum_of_the_changes_exactly(make, changes, names, weights):
    folder = make(*names, weights=weights)
    assert_same(read_changes(folder), add(changes, names, weights))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == sum(ADAPTERS[name]["r"] for name in names)
    assert config["use_rslora"] is False


def test_svd_is_the_best_approximation_of_the_sum_at_its_rank_and_exact_where_the_rank_is_enough(make, changes):
    total = add(changes, ("one", "two"), (0.5, 0.5))
    assert_same(read_changes(make("one", "two", how="svd", rank=8)), total, 1e-5)
    found = read_changes(make("one", "two", how="svd"))
    for layer, change in total.items():
        U, S, V = torch.linalg.svd(change, full_matrices=False)
        assert torch.allclose(found[layer], (U[:, :4] * S[:4]) @ V[:4], atol=1e-5)
    assert not torch.allclose(found[layer], total[layer], atol=1e-3)


@pytest.mark.parametrize("how", ["svd", "ties_svd"])
def test_a_rank_above_a_layers_smaller_side_is_filled_up_with_zeros_and_opens(make, changes, how):
    folder = make("widest", "one", how=how, weights=(1.0, -0.5), density=None if how == "svd" else 0.5)
    for A, B in read_matrices(folder).values():
        assert A.shape[0] == B.shape[1] == 48
    if how == "svd":  # of 32 outputs nothing is cut off
        total = add(changes, ("widest", "one"), (1.0, -0.5))
        layer = next(layer for layer in total if layer.endswith("k_proj"))
        assert torch.allclose(read_changes(folder)[layer], total[layer], atol=1e-5)
    assert to_logits(load_for_inference(str(folder)).model, [[1, 5, 9]])[0].isfinite().all()


def test_a_weight_below_0_takes_a_change_away_and_linear_leaves_its_cross_terms(runs, make, changes):
    A1, B1 = read_matrices(runs["one"] / "adapter").popitem()[1]
    layer, (A2, B2) = read_matrices(runs["two"] / "adapter").popitem()
    found = read_changes(make("one", "two", how="linear", weights=(1.0, -1.0)))[layer]
    cross = math.sqrt(2.0) * (B2 @ A1 - B1 @ A2)  # scalings 2 and 1; the sign stands on A alone
    assert torch.allclose(found, changes["one"][layer] - changes["two"][layer] + cross, atol=1e-5)


def test_linear_is_the_sum_and_the_cross_terms_of_its_halves(runs, make, changes):
    found = read_changes(make("one", "two", how="linear", weights=(0.5, 2.0)))
    halves = [read_matrices(runs[name] / "adapter") for name in ("one", "two")]
    total = add(changes, ("one", "two"), (0.5, 2.0))
    for layer in found:
        (A1, B1), (A2, B2) = (half[layer] for half in halves)
        cross = math.sqrt(0.5 * 2.0 * 2.0 * 1.0) * (B1 @ A2 + B2 @ A1)  # sqrt of both weights and both scalings
        assert torch.allclose(found[layer], total[layer] + cross, atol=1e-5)
        assert cross.abs().max() > 0.01
    # Of one adapter with itself it is the sum.
    assert_same(read_changes(make("one", "one", how="linear", weights=(0.25, 0.25))), changes["one"], 1e-5)


def trim(numbers: torch.Tensor, density: float) -> torch.Tensor:
    """Keep the largest numbers, a share of all, and put 0 for the others."""
    kept = sorted(numbers.abs().flatten().tolist(), reverse=True)[: int(density * numbers.numel())]
    return torch.where(numbers.abs() >= kept[-1], numbers, torch.zeros(()))


def ties(tensors: list[torch.Tensor], weights: list[float], density: float, majority: str) -> torch.Tensor:
    """TIES of tensors one number at a time: trim, elect the sign, average those that agree (algorithm 1)."""
    trimmed = [trim(tensor, density) for tensor in tensors]
    merged = torch.zeros_like(tensors[0])
    for place in range(merged.numel()):
        numbers = [float(tensor.flatten()[place]) for tensor in trimmed]
        votes = sum(numbers) if majority == "total" else sum((n > 0) - (n < 0) for n in numbers)
        sign = 1 if votes >= 0 else -1
        agreeing = [w * n for w, n in zip(weights, numbers, strict=True) if n * sign > 0]
        merged.view(-1)[place] = sum(agreeing) / max(len(agreeing), 1)
    return merged


def test_the_reference_of_ties_does_what_the_paper_draws():
    first, second = torch.tensor([3.0, -1.0, 0.1, -4.0]), torch.tensor([2.0, 3.0, -0.2, 1.0])
    # 0.1 and -0.2 go; the second place elects plus, the fourth minus.
    assert torch.equal(ties([first, second], [1, 1], 0.75, "total"), torch.tensor([2.5, 3.0, 0.0, -4.0]))


@pytest.mark.parametrize("majority", ["total", "frequency"])
def test_ties_votes_and_averages_on_each_half(runs, make, majority):
    names = ("one", "two", "attention")
    folder = make(*names, how="ties", weights=(0.5, 0.25, 0.25), density=0.4, majority_sign=majority)
    found = read_matrices(folder)
    halves = [read_matrices(runs[name] / "adapter") for name in names]
    layer = next(layer for layer in halves[2] if layer.endswith("v_proj"))
    weights = [math.sqrt(w * SCALES[name]) for w, name in zip((0.5, 0.25, 0.25), names, strict=True)]
    for which in (0, 1):
        expected = ties([half[layer][which] for half in halves], weights, 0.4, majority)
        assert torch.allclose(found[layer][which], expected, atol=1e-6)


def test_ties_svd_votes_on_the_changes_themselves(make, changes):
    found = read_changes(make("one", "two", how="ties_svd", weights=(1.0, 1.0), density=0.5, rank=32))
    layer = next(layer for layer in found if layer.endswith("k_proj"))  # 32 rows, so that rank 32 holds all of it
    expected = ties([changes["one"][layer], changes["two"][layer]], [1.0, 1.0], 0.5, "total")
    assert torch.allclose(found[layer], expected, atol=1e-5)


def test_magnitude_prune_trims_each_half_and_adds(runs, make):
    found = read_matrices(make("one", "two", how="magnitude_prune", weights=(1.0, 1.0), density=0.5))
    one, two = (read_matrices(runs[name] / "adapter") for name in ("one", "two"))
    for layer, (A, _) in found.items():
        assert torch.allclose(A, math.sqrt(2) * trim(one[layer][0], 0.5) + trim(two[layer][0], 0.5), atol=1e-6)


def test_dare_drops_by_its_seed_and_scales_the_others_up(runs, make):
    one, two = (read_matrices(runs[name] / "adapter") for name in ("one", "two"))
    folders = [make("one", "two", how="dare_linear", weights=(1.0, 1.0), density=0.5, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (read_matrices(folder) for folder in folders)
    layer = next(iter(first))
    assert torch.equal(first[layer][0], again[layer][0])
    assert not torch.equal(first[layer][0], other[layer][0])
    a, b = 2 * math.sqrt(2) * one[layer][0], 2 * two[layer][0]  # kept numbers stand for two
    outcomes = torch.stack([torch.zeros_like(a), a, b, a + b])
    assert (outcomes - first[layer][0]).abs().min(0).values.max() < 1e-5
    shares = [float(((outcomes[k] - first[layer][0]).abs() < 1e-5).float().mean()) for k in range(4)]
    assert all(0.1 < share < 0.4 for share in shares), "each of the four comes up about as often"


def test_ia3_is_the_weighted_mean_of_the_vectors(runs, make):
    found = load_file(make("ia3", "other_ia3", how="linear", weights=(0.75, 0.25)) / "adapter_model.safetensors")
    one, two = (load_file(runs[name] / "adapter" / "adapter_model.safetensors") for name in ("ia3", "other_ia3"))
    assert found.keys() == one.keys()
    assert all(torch.allclose(found[key], 0.75 * one[key] + 0.25 * two[key]) for key in found)


@pytest.mark.parametrize("how", HOWS)
def test_every_way_leaves_a_folder_that_chat_opens(make, how):
    density = None if how in ("cat", "svd", "linear") else 0.5
    folder = make("one", "two", how=how, density=density)
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"} <= names
    assert {"chat_template.jinja", "generation_config.json"} <= names
    card = (folder / "README.md").read_text()
    assert f"| how | {how} |" in card
    assert "| 0.5 |" in card
    speaker = load_for_inference(str(folder))
    assert speaker.tokenizer.chat_template
    with_it = to_logits(speaker.model, [[1, 5, 9]])[0]
    with speaker.model.disable_adapter():
        assert not torch.allclose(to_logits(speaker.model, [[1, 5, 9]])[0], with_it)
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_the_composed_adapter_answers_as_a_base_with_the_changes_added(runs, make, changes):
    folder = make("one", "two", weights=(1.0, 1.0))
    in_float32 = load_for_inference(str(runs["one"]), base_only=True).model
    found = to_logits(attach_saved_adapter(in_float32, folder), [[1, 5, 9]])[0]
    base = load_for_inference(str(runs["one"]), base_only=True).model
    with torch.no_grad():
        for layer, change in add(changes, ("one", "two"), (1.0, 1.0)).items():
            base.get_submodule(layer.removeprefix("base_model.model.")).weight += change
    assert torch.allclose(to_logits(base, [[1, 5, 9]])[0], found, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "manner", "told"),
    [
        (
            ("one", "wide"),
            Manner("linear", (0.5, 0.5)),
            r"one rank: .*one has 4, .*wide has 9.\n.*--how cat.*--how svd",
        ),
        (("one", "wide"), Manner("ties", (0.5, 0.5), density=0.5), r"--how ties_svd"),
        (("one",), Manner("cat", (1.0,)), "two adapters or more"),
        (("one", "two"), Manner("cat", (1.0,)), "1 numbers for 2 adapters"),
        (("one", "two"), Manner("cat", (1.0, 0.0)), "weight 0"),
        (("one", "two"), Manner("cat", (math.nan, 1.0)), "--weights: nan is not a usable weight"),
        (("one", "two"), Manner("svd", (1.0, -math.inf)), "--weights: -inf is not a usable weight"),
        (("one", "two"), Manner("ties", (1.0, 1.0)), "--density, above 0 and below 1; found None"),
        (("one", "two"), Manner("dare_ties", (1.0, 1.0), density=1.0), "found 1.0"),
        (("one", "two"), Manner("svd", (1.0, 1.0), density=0.5), "keeps every number"),
        (("one", "two"), Manner("cat", (1.0, 1.0), rank=4), "Take --how svd"),
        (("one", "ia3"), Manner("cat", (1.0, 1.0)), "LoRA to LoRA, or IA3 to IA3: .* is lora, .* is ia3"),
        (("bitfit", "bitfit"), Manner("cat", (1.0, 1.0)), "is bitfit"),
        (("one", "dora"), Manner("cat", (1.0, 1.0)), "more than plain lora: its `use_dora` is true"),
        (("one", "first_layer"), Manner("cat", (1.0, 1.0)), "`layers_to_transform` of .* is null, of .*0"),
        (("ia3", "other_ia3"), Manner("cat", (0.5, 0.5)), "Take --how linear"),
        (("ia3", "other_ia3"), Manner("linear", (1.0, 1.0)), "sum to 1"),
        (("ia3", "small_ia3"), Manner("linear", (0.5, 0.5)), "`target_modules` of .* differ"),
    ],
)
def test_what_cannot_be_added_is_refused_before_anything_is_loaded(runs, tmp_path, names, manner, told):
    targets = [find_target(str(runs[name])) for name in names]
    with pytest.raises(RecipeError, match=told):
        check_composable(targets, manner)
    with pytest.raises(RecipeError, match=told):
        compose_adapters(targets, manner, tmp_path / "to")
    assert not list(tmp_path.iterdir())


def test_another_base_is_refused_with_both_named_and_another_precision_is_not(runs, tmp_path, make):
    elsewhere = write_run(tmp_path / "x" / "run", write_base(tmp_path / "x" / "base"), adapter=ADAPTERS["one"])
    with pytest.raises(RecipeError, match="another base") as told:
        check_composable([find_target(str(runs["one"])), find_target(str(elsewhere))], Manner("cat", (1.0, 1.0)))
    assert str(tmp_path / "x" / "base") in str(told.value)
    in_4_bit = write_run(tmp_path / "nf4", runs["one"].parent / "base", adapter=ADAPTERS["one"])
    check_composable([find_target(str(runs["one"])), find_target(str(in_4_bit))], Manner("cat", (1.0, 1.0)))


def test_a_folder_in_use_and_a_damaged_adapter_are_refused(runs, tmp_path):
    targets = [find_target(str(runs["one"])), find_target(str(runs["two"]))]
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine.txt").write_text("keep")
    with pytest.raises(PlaceError, match="is not empty"):
        compose_adapters(targets, Manner("cat", (1.0, 1.0)), tmp_path / "to")
    copied = shutil.copytree(runs["one"] / "adapter", tmp_path / "copy")
    tensors = load_file(copied / "adapter_model.safetensors")
    dropped = next(iter(tensors))
    del tensors[dropped]
    save_file(tensors, copied / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PlaceError, match="is not as its adapter_config"):
        compose_adapters([targets[0], find_target(str(copied))], Manner("cat", (1.0, 1.0)), tmp_path / "new")
