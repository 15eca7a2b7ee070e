"""A server of files whose answers are late, refused, cut or odd, as told."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import random
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `latency` in seconds, `errors` and `cuts` as parts of all answers.

    `odd` are its habits: "unsized" (no length, chunked), "closing" (no length, closed at the end),
    "whole" (no ranges), "unnamed" (no ETag), "weak" (a weak one), "no_head", "packed" (gzip though
    not asked), "moved" (leads on), "elsewhere" (leads to a file of the machine), "busy" (429 with a
    time, once for each address), "shifted" (parts of another place), "other_part" (an ETag of its
    own for parts).
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, folder: Path, latency: float, errors: float, cuts: float, odd: frozenset[str]
    ) -> None:
        self.folder, self.latency, self.errors, self.cuts = folder, latency, errors, cuts
        self.odd, self.pause = odd, 0.0
        self.random, self.asked = random.Random(0), 0
        self.bodies: Counter[str] = Counter()
        self.contents: dict[Path, tuple[tuple[int, int], bytes, str]] = {}
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def content(self, path: Path) -> tuple[bytes, str]:
        """(bytes, tag) of a file as it is now."""
        stat = path.stat()
        form = stat.st_mtime_ns, stat.st_ino
        if path not in self.contents or self.contents[path][0] != form:
            data = path.read_bytes()
            self.contents[path] = (form, data, f'"{hashlib.sha256(data).hexdigest()}"')
        return self.contents[path][1:]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def setup(self) -> None:
        super().setup()
        self.protocol_version = "HTTP/1.1" if "unsized" in self.server.odd else "HTTP/1.0"

    def do_HEAD(self) -> None:
        if "no_head" in self.server.odd:
            self.send_error(405)
        else:
            self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        server, odd = self.server, self.server.odd
        server.asked += 1
        self.close_connection = True
        time.sleep(server.latency)
        if server.random.random() < server.errors:
            self.send_error(503)
            return
        if "busy" in odd and server.bodies[self.path] == 0:
            server.bodies[self.path] += 1
            self.send_response(429)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        place = urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
        if odd & {"moved", "elsewhere"} and not place.startswith("new/"):
            self.send_response(302)
            target = f"/new/{place}" if "moved" in odd else "file:///etc/passwd"
            self.send_header("Location", urllib.parse.quote(target, safe="/:"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = server.folder / place.removeprefix("new/")
        if not path.is_file():
            self.send_error(404)
            return
        self.send(path, body)

    def send(self, path: Path, body: bool) -> None:
        server, odd = self.server, self.server.odd
        content, tag = server.content(path)
        start, last, given = 0, len(content) - 1, self.headers.get("Range")
        if given and "whole" not in odd:
            first, _, end = given.removeprefix("bytes=").partition("-")
            start, last = int(first), int(end) if end else last
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if "other_part" in odd:
                tag = f'"of {start}"'
        is_part = given is not None and "whole" not in odd
        data = content[start : last + 1]
        self.send_response(206 if is_part else 200)
        if is_part:
            shown = start + 7 if "shifted" in odd else start
            self.send_header("Content-Range", f"bytes {shown}-{last}/{len(content)}")
        if "packed" in odd:
            data = gzip.compress(data)
            self.send_header("Content-Encoding", "gzip")
        if "unsized" in odd:
            self.send_header("Transfer-Encoding", "chunked")
        elif "closing" not in odd:
            self.send_header("Content-Length", str(len(data)))
        if "weak" in odd:
            self.send_header("ETag", f"W/{tag}")
        elif "unnamed" not in odd:
            self.send_header("ETag", tag)
        self.end_headers()
        if body:
            server.bodies[self.path] += 1
            self.write(data)

    def write(self, data: bytes) -> None:
        """The body, or the first half of it."""
        server = self.server
        end = len(data) // 2 if server.random.random() < server.cuts else len(data)
        with contextlib.suppress(ConnectionError):
            if server.pause:  # a byte at a time
                for place in range(end):
                    self.wfile.write(data[place : place + 1])
                    time.sleep(server.pause)
            elif "unsized" in server.odd:
                for place in range(0, end, 1 << 16):
                    piece = data[place : min(end, place + (1 << 16))]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                if end == len(data):
                    self.wfile.write(b"0\r\n\r\n")
            else:
                self.wfile.write(data[:end])

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serving(
    folder: Path,
    latency: float = 0.0,
    errors: float = 0.0,
    cuts: float = 0.0,
    odd: frozenset[str] | set[str] = frozenset(),
) -> Iterator[Server]:
    """The server, running meanwhile."""
    server = Server(folder, latency, errors, cuts, frozenset(odd))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
