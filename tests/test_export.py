"""The verb export: the whole model in a folder, and what differs, said."""

import json
import shutil
from pathlib import Path

import pytest

from finetune import export
from tests.model.saved_runs import write_base, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("export")
    return write_run(place / "outputs" / "run", write_base(place / "base"))


@pytest.fixture
def merge(run, capfd):
    def merge(*arguments: object, target: Path = run) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as left:
            export.main([str(target), *map(str, arguments)])
        return left.value.code, *capfd.readouterr()

    return merge


def test_the_difference_to_adapter_and_base_is_said(merge, tmp_path):
    code, out, err = merge("--merge", tmp_path / "whole")
    assert code == 0, err
    assert f"{tmp_path / 'whole'}: a whole model in bfloat16." in out
    assert "logits differ by" in out
    assert "mean KL" in out
    assert "the same at" in out
    assert f"python -m finetune.chat {tmp_path / 'whole'}" in out
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_json_is_one_object_and_nothing_else_and_the_dtype_is_as_asked(merge, tmp_path):
    code, out, _ = merge("--merge", tmp_path / "whole", "--dtype", "float32", "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["max_abs"] < 1e-4
    assert printed["dtype"] == json.loads((tmp_path / "whole" / "config.json").read_text())["dtype"] == "float32"


def test_a_folder_in_use_is_exit_4_before_anything_is_loaded(merge, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    code, out, err = merge("--merge", tmp_path)
    assert (code, out) == (4, "")
    assert err.startswith(f"{tmp_path} is not empty")
    assert "Merging" not in err


def test_what_does_not_merge_is_exit_2_with_the_reason(merge, run, tmp_path):
    code, _, err = merge("--merge", tmp_path / "whole", target=run.parents[1] / "base")
    assert code == 2
    assert "whole model already" in err

    tuned = write_run(
        tmp_path / "run", run.parents[1] / "base", adapter={"method": "prompt_tuning", "num_virtual_tokens": 4}
    )
    code, _, err = merge("--merge", tmp_path / "whole", target=tuned)
    assert code == 2
    assert "changes no weight" in err


def test_an_unfinished_run_is_exit_4(merge, run, tmp_path):
    unfinished = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("adapter"))
    code, _, err = merge("--merge", tmp_path / "whole", target=unfinished)
    assert code == 4
    assert "unfinished run" in err
