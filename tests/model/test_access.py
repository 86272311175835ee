import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from finetune.errors import PlaceError, RecipeError
from finetune.model.access import fetch, find_cached
from finetune.model.base import check_base
from finetune.recipe.schema import ModelSettings

ROOT = Path(__file__).parents[2]

# A hub that answers as the real one does, by the model's name, to a client with one second of patience.
STAND_IN = """
import http.server, json, os, shutil, sys, threading, time
from pathlib import Path

ANSWERS = {
    "absent": (404, {"X-Error-Code": "RepoNotFound"}),
    "hidden": (401, {"X-Error-Code": "RepoNotFound"}),
    "gated_401": (401, {"X-Error-Code": "GatedRepo"}),
    "gated_403": (403, {"X-Error-Code": "GatedRepo"}),
    "forbidden": (403, {}),
    "no_revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "broken": (503, {}),
}
FILES = {
    "whole": ["config.json", "model.safetensors.index.json"],
    "gguf": ["model.gguf"],
    "pickled": ["config.json", "pytorch_model.bin"],
}
CONFIG = json.dumps({"model_type": "mistral", "max_position_embeddings": 64}).encode()


class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        if self.path.startswith("/api/models/org/whole"):
            files = {"model-00001-of-00002.safetensors": 700, "model-00002-of-00002.safetensors": 50, "config.json": 1,
                     "tokenizer.json": 5, "pytorch_model.bin": 800, "model.gguf": 900}
            listed = [{"rfilename": name, "size": size} for name, size in files.items()]
            answer = json.dumps({"id": "org/whole", "siblings": listed}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            return
        _, owner, name, _, revision, file = self.path.split("/", 5)
        if name == "silent":
            time.sleep(5)
            return
        status, headers = ANSWERS.get(name, (200, {}))
        if status == 200 and file not in FILES[name]:
            status, headers = 404, {"X-Error-Code": "EntryNotFound"}
        self.send_response(status)
        for key, value in (headers | {"X-Repo-Commit": "a" * 40, "ETag": '"' + "b" * 40 + '"'}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(CONFIG) if status == 200 else 0))
        self.end_headers()
        if self.command == "GET" and status == 200:
            self.wfile.write(CONFIG)

    do_GET = do_HEAD

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
os.environ["HF_HUB_ETAG_TIMEOUT"] = "1"

from finetune.errors import FinetuneError
from finetune.model.access import fetch, find_download_bytes
from finetune.model.base import check_base
from finetune.recipe.schema import ModelSettings

said = {}
fetched = fetch("org/whole", "config.json")
said["fetched"] = f"{fetched.name} {fetch('org/whole', 'config.json') == fetched} {fetch('org/gguf', 'config.json')}"
said["bytes"] = f"{find_download_bytes('org/whole', None)} {find_download_bytes(sys.argv[1], None)}"
said["no list"] = f"{find_download_bytes('org/gguf', None)}"
for name in [*ANSWERS, *FILES, "silent", "down"]:
    if name == "down":
        server.shutdown()
        server.server_close()
    revision = "v9" if name == "no_revision" else None
    try:
        check_base(ModelSettings(model_name_or_path=f"org/{name}", revision=revision, device="cpu"))
        said[name] = "reached"
    except FinetuneError as error:
        said[name] = f"{error.exit_code} {error}"

# A model of the Hub that lies in the cache, offline.
from huggingface_hub import constants
from finetune.model.adapters import attach_adapter
from finetune.model.base import load_base
from finetune.recipe.schema import AdapterSettings

folder = Path(os.environ["HF_HOME"], "hub", "models--org--kept")
shutil.copytree(sys.argv[1], folder / "snapshots" / ("c" * 40))
(folder / "refs").mkdir()
(folder / "refs" / "main").write_text("c" * 40)
constants.HF_HUB_OFFLINE = True
settings = ModelSettings(model_name_or_path="org/kept", device="cpu", compute_dtype="float32")
check_base(settings)
base = load_base(settings)
adapter = attach_adapter(base, AdapterSettings(init_lora_weights="loftq"), seed=0)
said["kept"] = f"{base.commit} {adapter.peft_config['default'].revision} {base.model.name_or_path}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, str]:
    """What check_base says of each model of the stand-in hub."""
    home = tmp_path_factory.mktemp("hf_home")
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_CACHE")}
    told = subprocess.run(
        [sys.executable, "-c", STAND_IN, str(tiny_model)],
        env=environment | {"HF_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


@pytest.mark.parametrize(
    ("name", "what", "action"),
    [
        ("absent", "The Hub has no model org/absent (404)", "Check the name"),
        ("hidden", "shows no model org/hidden to one who is not logged in (401)", "hf auth login"),
        ("gated_401", "org/gated_401 is gated on the Hub, and you are not logged in (401)", "hf auth login"),
        (
            "gated_403",
            "org/gated_403 is gated on the Hub, and your account has no access to it yet (403)",
            "Ask for it",
        ),
        ("forbidden", "The Hub refuses org/forbidden to your token (403)", "A token that may: hf auth login"),
        ("no_revision", "The Hub has no revision `v9` of org/no_revision (404)", "Its revisions"),
        ("broken", "The Hub is out of order: it answers 503 for org/broken", "Try again later"),
        ("silent", "the Hub did not answer in time", "hf download org/silent --local-dir models/silent"),
        ("down", "the Hub cannot be reached", "hf download org/down --local-dir models/down"),
        ("gguf", "org/gguf has no config.json on the Hub", "wants the base itself"),
        ("pickled", "org/pickled has no safetensors weights", "model.revision=refs/pr/N"),
    ],
)
def test_what_stands_between_us_and_a_model_is_said_with_its_action(said, name, what, action):
    first, _, rest = said[name].partition("\n")
    assert first.startswith("2 " if name == "gguf" else "4 ")
    assert what in first
    assert action in rest
    assert len(said[name].splitlines()) <= 4


def test_a_model_whose_weights_are_on_the_hub_passes_without_them(said):
    assert said["whole"] == "reached"


def test_a_model_in_the_cache_loads_without_the_hub_and_its_commit_is_recorded(said):
    assert said["kept"] == f"{'c' * 40} {'c' * 40} org/kept"


def test_a_file_is_fetched_once_and_one_that_the_repository_has_not_got_is_none(said):
    assert said["fetched"] == "config.json True None"


def test_what_is_still_to_be_downloaded_is_counted_without_what_is_never_fetched(said):
    # The config is in the cache already; pickles and GGUF are not what is loaded.
    assert said["bytes"] == f"{700 + 50 + 5} 0"


def test_a_hub_that_gives_no_list_of_files_keeps_no_run_from_starting(said):
    assert said["no list"] == "0"


def test_every_reason_has_its_own_words(said):
    first_lines = [text.partition("\n")[0] for text in said.values()]
    assert len(set(first_lines)) == len(first_lines)


def test_offline_without_the_model_every_way_out_is_named():
    with pytest.raises(PlaceError) as refusal:
        check_base(ModelSettings(model_name_or_path="mistralai/Mistral-7B-v0.1", device="cpu"))
    text = str(refusal.value)
    assert text.startswith("mistralai/Mistral-7B-v0.1 is not, or not whole, on this machine, and HF_HUB_OFFLINE")
    for way_out in (
        "hf auth login",
        "hf download mistralai/Mistral-7B-v0.1 --local-dir models/Mistral-7B-v0.1",
        "model.model_name_or_path=models/Mistral-7B-v0.1",
        "make quickstart",
    ):
        assert way_out in text


def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub():
    for name in ("./models/mine", "/models/mine", "~/models/mine", "a/b/c", "my model"):
        with pytest.raises(PlaceError, match="there is no such folder, and a name on the Hub has the form OWNER/MODEL"):
            check_base(ModelSettings(model_name_or_path=name, device="cpu"))


def test_a_name_of_the_hubs_form_that_it_cannot_have_is_said_to_be_none():
    for ask in (
        lambda name: check_base(ModelSettings(model_name_or_path=name, device="cpu")),
        lambda name: fetch(name, "tokenizer.json"),
    ):
        with pytest.raises(PlaceError, match="a name on the Hub has the form OWNER/MODEL"):
            ask("org/my..base")


def test_a_file_in_the_cache_is_found_and_one_that_is_not_is_none(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--org--kept" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").touch()
    (tmp_path / "models--org--kept" / "refs").mkdir()
    (tmp_path / "models--org--kept" / "refs" / "main").write_text("c" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert (
        find_cached("org/kept", "tokenizer.json") == fetch("org/kept", "tokenizer.json") == snapshot / "tokenizer.json"
    )
    assert find_cached("org/kept", "tokenizer.model") is None
    with pytest.raises(PlaceError, match="HF_HUB_OFFLINE forbids fetching it"):
        fetch("org/kept", "tokenizer.model")


def test_an_adapters_folder_is_not_a_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecipeError, match="holds an adapter"):
        check_base(ModelSettings(model_name_or_path=str(tmp_path), device="cpu"))


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(PlaceError, match=r"holds no config.json"):
        check_base(ModelSettings(model_name_or_path=str(tmp_path), device="cpu"))
