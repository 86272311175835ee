"""A stand-in for the Hugging Face Hub on this machine that serves folders: models and datasets, a commit each.

`root/models/OWNER/NAME` and `root/datasets/OWNER/NAME` are the repositories. Where the answers of a real hub to what
cannot be had matter, `tests/data/hub_stand_in.py` gives them.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

COMMIT = "facade" * 6 + "faca"
_FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[\w.-]+/[\w.-]+)/resolve/[^/]+/(?P<file>.+)")
_ASKED = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[\w.-]+/[\w.-]+)(?P<what>/tree|/paths-info)?(?P<rest>.*)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def __init__(self, *arguments: Any, root: Path) -> None:
        self._root = root
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if found := _FILE.fullmatch(path):
            self._send_file(self._root / ("datasets" if found["kind"] else "models") / found["name"] / found["file"])
        elif found := _ASKED.fullmatch(path):
            repository = self._root / found["kind"] / found["name"]
            if not repository.is_dir():
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif found["what"] == "/tree":
                # /tree/COMMIT, or /tree/COMMIT/FOLDER
                folder = repository / "/".join(found["rest"].strip("/").split("/")[1:])
                is_deep = "recursive=true" in self.path.lower()
                self._send_json(_list(repository, folder.rglob("*") if is_deep else folder.glob("*")))
            else:
                entries = _list(repository, repository.rglob("*"))
                files = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
                self._send_json({"id": found["name"], "sha": COMMIT, "siblings": files, "tags": []})
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        found = _ASKED.fullmatch(self.path)
        assert found is not None, self.path
        repository = self._root / found["kind"] / found["name"]
        paths = [repository / name for name in asked["paths"]]
        self._send_json(_list(repository, [path for path in paths if path.exists()]))

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        self._send(200, content, {"ETag": f'"{sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""


def _list(repository: Path, paths: Iterable[Path]) -> list[dict[str, object]]:
    return [
        {"path": str(path.relative_to(repository)), "oid": path.name, "lastCommit": None, "security": None}
        | ({"type": "file", "size": path.stat().st_size} if path.is_file() else {"type": "directory"})
        for path in sorted(paths)
    ]


@contextmanager
def serve_folders(root: Path) -> Iterator[str]:
    """Serve the repositories below a folder on a free port of this machine and give the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, root=root))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
