"""The base's config: from its folder, the recipe, the Hub's cache, the built-in list, and where nothing knows it."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import pytest
from huggingface_hub import constants

from finetune.errors import PlaceError, RecipeError
from finetune.planning.base import find_config
from finetune.recipe.schema import ModelSettings

FIELDS = {"model_type": "llama", "hidden_size": 32}


def test_a_folder_s_own_config_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    found = find_config(ModelSettings(model_name_or_path=str(tmp_path)))
    assert found.fields == FIELDS
    assert found.origin == str(tmp_path / "config.json")


def test_the_recipe_s_own_fields_come_first():
    found = find_config(ModelSettings(weights="random", config=FIELDS))
    assert (found.fields, found.origin) == (FIELDS, "the recipe's `model.config`")


def test_the_hub_s_cache_is_read_by_branch_and_by_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(FIELDS))
    for revision in (None, "abc"):
        found = find_config(ModelSettings(model_name_or_path="some/model", revision=revision))
        assert (found.fields, found.origin) == (FIELDS, "the Hub's cache on this disk")


def test_a_model_that_nothing_here_knows_is_told_with_a_way_out():
    with pytest.raises(PlaceError, match="The shape of nobody/knows-me is not known here") as told:
        find_config(ModelSettings(model_name_or_path="nobody/knows-me"))
    assert "model.model_name_or_path=/path/to/folder" in str(told.value)


class Hub(BaseHTTPRequestHandler):
    """A Hub that knows one model, and notes what it was asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        content = json.dumps(FIELDS).encode()
        self.send_response(200 if self.path.startswith("/some/model/") else 503)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        """Keep the test's output clean."""


def test_the_hub_is_asked_last_and_once(monkeypatch, caplog):
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
        found = find_config(ModelSettings(model_name_or_path="some/model", revision="abc"))
        assert (found.fields, found.origin) == (FIELDS, "the Hub")
        with pytest.raises(PlaceError, match="The shape of some/other is not known here"):
            find_config(ModelSettings(model_name_or_path="some/other"))
        server.shutdown()
    assert Hub.asked == ["/some/model/resolve/abc/config.json", "/some/other/resolve/main/config.json"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_recipe_without_a_base_is_told():
    with pytest.raises(RecipeError, match="no base model is named"):
        find_config(ModelSettings())
