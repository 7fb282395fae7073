"""As much of Hugging Face as fetching a model asks for, on 127.0.0.1; it can stop in the middle of a file."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `files` for one repository. `cut` is after how many bytes of a file it says no more."""

    def __init__(self, repository: str, files: Path) -> None:
        self.repository, self.files = repository, files
        self.cut: dict[str, int] = {}
        self.asked: list[str] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        self.asked.append(f"{handler.command} {path} {handler.headers.get('range', '')}".strip())
        api, file = f"/api/models/{self.repository}", f"/{self.repository}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/main"):
            return self.say(handler, {"id": self.repository, "sha": COMMIT, "siblings": []})
        if path == f"{api}/tree/{COMMIT}":
            return self.say(handler, [self.entry(each) for each in sorted(self.files.iterdir())])
        if path.startswith(file) and (self.files / path.removeprefix(file)).is_file():
            return self.give(handler, self.files / path.removeprefix(file))
        return self.say(handler, {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def entry(self, path: Path) -> dict[str, Any]:
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": etag(path)}

    def say(
        self, handler: BaseHTTPRequestHandler, what: Any, status: int = 200, more: dict[str, str] | None = None
    ) -> None:
        data = json.dumps(what).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(more or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(data)

    def give(self, handler: BaseHTTPRequestHandler, path: Path) -> None:
        data = path.read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("range") or "")
        begin = int(part[1]) if part else 0
        handler.send_response(206 if part else 200)
        handler.send_header("ETag", f'"{etag(path)}"')
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("Content-Length", str(len(data) - begin))
        if part:
            handler.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        cut = self.cut.pop(path.name, None)
        handler.wfile.write(data[begin:cut])
        if cut is not None:
            handler.wfile.flush()
            self.over.wait(60)


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serving_hub(repository: str, files: Path) -> Iterator[Hub]:
    hub = Hub(repository, files)
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
