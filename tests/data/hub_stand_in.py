"""A stand-in for the Hugging Face Hub on this machine: one dataset that is there, and ways of not being there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "c0ffee" * 6 + "c0ff"
ROWS = {"train": [{"question": "2+2", "answer": "4"}] * 3, "test": [{"question": "1+1", "answer": "2"}]}
FILES = {f"{split}.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode() for split, rows in ROWS.items()}
# What the Hub answers for datasets that cannot be had: status and its error code.
REFUSALS = {
    "some/absent": (404, "RepoNotFound"),
    "some/private": (401, "RepoNotFound"),
    "some/gated": (401, "GatedRepo"),
    "some/asked": (403, "GatedRepo"),
    "some/forbidden": (403, ""),
    "some/refused": (400, ""),  # takes the path of a Hub out of reach, without the library's 25 seconds of retries
}


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = self.rfile.read(length).decode()
        found = [_describe(name) for name in FILES if name in asked]
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"}, True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        for name, (status, code) in REFUSALS.items():
            if f"/{name}" in path:
                self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, with_body)
                return
        revision = path.split("/resolve/")[-1].split("/")[0]
        if "/resolve/" in path and revision not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
        elif path.endswith("/script.py"):
            self._send(200, b"", {"ETag": '"script"', "X-Repo-Commit": COMMIT}, with_body)
        elif "/resolve/" in path and path.rsplit("/", 1)[-1] in FILES:
            content = FILES[path.rsplit("/", 1)[-1]]
            self._send(200, content, {"ETag": f'"{len(content)}"', "X-Repo-Commit": COMMIT}, with_body)
        elif "/resolve/" in path:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, with_body)
        elif "/tree/" in path:
            listing = [_describe(name) for name in FILES if "/some/empty" not in path]
            self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, with_body)
        elif path.startswith("/api/datasets/"):
            info = {"id": "some/sums", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES], "tags": []}
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def _describe(name: str) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(FILES[name]), "oid": name, "lastCommit": None, "security": None}


@contextmanager
def serve() -> Iterator[str]:
    """Serve on a free port of this machine and give the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
