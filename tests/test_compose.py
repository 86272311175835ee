"""The verb compose: from two runs to an adapter that is talked to."""

import json
import shutil
from pathlib import Path

import pytest

from finetune import compose
from finetune.model.loading import load_for_inference
from finetune.model.merging import to_logits
from tests.model.saved_runs import write_base, write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("compose")
    base = write_base(place / "base")
    write_run(place / "outputs" / "one", base, adapter={"method": "lora", "r": 4}, template="chatml")
    write_run(place / "outputs" / "two", base, adapter={"method": "lora", "r": 8})
    write_run(place / "outputs" / "ia3", base, adapter={"method": "ia3"})
    return place


@pytest.fixture
def run(place, monkeypatch, capfd):
    """Run the verb where the runs lie; gives exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.chdir(place)
        with pytest.raises(SystemExit) as left:
            compose.main(list(arguments))
        return left.value.code, *capfd.readouterr()

    return run


ONE, TWO, IA3 = "outputs/one", "outputs/two", "outputs/ia3"


def test_two_runs_become_one_adapter_that_says_what_it_was_made_from(run, place):
    code, out, _ = run(ONE, TWO, "--to", "outputs/both", "--weights", "0.7,0.3")
    assert code == 0
    assert out.startswith("outputs/both: 0.7 x outputs/one + 0.3 x outputs/two, by cat, rank 12.\n")
    assert "python -m finetune.chat outputs/both --quantization nf4" in out
    card = (place / "outputs" / "both" / "README.md").read_text()
    assert "| outputs/one | 0.7 |\n| outputs/two | 0.3 |" in card
    assert "<|im_start|>" in (place / "outputs" / "both" / "chat_template.jinja").read_text()
    speaker = load_for_inference(str(place / "outputs" / "both"), quantization="nf4")
    assert to_logits(speaker.model, [[1, 5, 9]])[0].isfinite().all()


def test_json_is_one_object_and_the_weights_are_equal_by_default(run):
    code, out, _ = run(ONE, TWO, "--to", "outputs/as_json", "--how", "svd", "--rank", "2", "--json")
    assert code == 0
    assert json.loads(out) == {
        "folder": "outputs/as_json",
        "adapters": [ONE, TWO],
        "weights": [0.5, 0.5],
        "how": "svd",
        "density": None,
        "rank": 2,
    }


def test_ia3_is_added_linearly_by_default(run):
    code, out, _ = run(IA3, IA3, "--to", "outputs/ia3_twice", "--json")
    assert (code, json.loads(out)["how"], json.loads(out)["rank"]) == (0, "linear", None)


def test_the_options_of_pruning_each_change_the_result(run, place):
    found = set()
    plain = ("--density", "0.5", "--weights", "1,1")
    for number, options in enumerate(
        [
            ("--how", "ties_svd", *plain),
            ("--how", "ties_svd", *plain, "--majority-sign", "frequency"),
            ("--how", "ties_svd", "--density", "0.2", "--weights", "1,1"),
            ("--how", "dare_linear_svd", *plain),
            ("--how", "dare_linear_svd", *plain, "--seed", "1"),
        ]
    ):
        assert run(ONE, TWO, "--to", f"outputs/pruned_{number}", *options)[0] == 0
        found.add((place / "outputs" / f"pruned_{number}" / "adapter_model.safetensors").read_bytes())
    assert len(found) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((ONE, TWO, "--weights", "a,b"), 2, "--weights wants numbers separated by commas; found `a,b`"),
        ((ONE, TWO, "--weights", "nan,1"), 2, "--weights: nan is not a usable weight"),
        ((ONE, TWO, "--how", "linear"), 2, "With any ranks: --how cat, which is exact, or --how svd."),
        ((ONE, IA3), 2, "compose adds LoRA to LoRA"),
        ((ONE, "base"), 2, "base is a whole model, not an adapter"),
        ((ONE, "outputs/none"), 4, "there is no such folder"),
    ],
)
def test_what_does_not_go_is_told_with_the_way_out(run, place, arguments, code, told):
    found, out, err = run(*arguments, "--to", "outputs/refused")
    assert (found, out) == (code, "")
    assert told in err
    assert not (place / "outputs" / "refused").exists()


def test_an_adapter_composed_elsewhere_still_finds_its_base(run, place, tmp_path):
    (place / "by_name").mkdir()
    for name in ("one", "two"):  # runs whose base is a relative path
        folder = shutil.copytree(place / "outputs" / name / "adapter", place / "by_name" / name)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "base"}))
    assert run("by_name/one", "by_name/two", "--to", str(tmp_path / "far"))[0] == 0
    assert json.loads((tmp_path / "far" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        place / "base"
    )
    assert run("by_name/one", "by_name/two", "--to", "by_name/near")[0] == 0
    near = json.loads((place / "by_name" / "near" / "adapter_config.json").read_text())
    assert near["base_model_name_or_path"] == "base"
