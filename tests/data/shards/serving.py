"""A server of files whose answers are late, refused or cut, as told."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `latency` in seconds, `errors` and `cuts` as parts of all answers."""

    daemon_threads = True

    def __init__(self, folder: Path, latency: float, errors: float, cuts: float) -> None:
        self.folder, self.latency, self.errors, self.cuts = folder, latency, errors, cuts
        self.random, self.asked = random.Random(0), 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        server = self.server
        server.asked += 1
        time.sleep(server.latency)
        if server.random.random() < server.errors:
            self.send_error(503)
            return
        path = server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content, start = path.read_bytes(), 0
        if given := self.headers.get("Range"):
            start = int(given.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if not body:
            return
        end = len(content)
        if server.random.random() < server.cuts:
            end = start + (end - start) // 2
        self.wfile.write(content[start:end])
        if end < len(content):
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serving(
    folder: Path, latency: float = 0.0, errors: float = 0.0, cuts: float = 0.0
) -> Iterator[Server]:
    """The server, running meanwhile."""
    server = Server(folder, latency, errors, cuts)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
