"""Files from elsewhere: over http(s) with the standard library, else through fsspec.

An answer that is cut goes on where it ended; a fault that may pass is tried again, a little later
each time. Sizes are checked, and hashes where an index gives them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import IO, Any

from bigmodel_cli.data.shards import elsewhere
from bigmodel_cli.data.shards.remote import PIECE, Again, Changed, Remote, add, same
from bigmodel_cli.errors import DataError, MissingData

TRIES = 8
"""Times in a row that a request may fail, without a byte gained, before that is said."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0  # seconds
TIMEOUT = 30.0  # seconds without a byte
MOST_SMALL = 1 << 28
"""Most bytes of an index."""
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Statuses of http after which the same request may succeed."""
HASHES = {"sha256", "sha1", "md5"}


def is_url(text: str) -> bool:
    """Whether a text names a place by a scheme: not a path."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and scheme.isalnum() and len(scheme) > 1


def look(url: str) -> Remote:
    """The size and version of a file.

    Raises `MissingData` where there is none, `DataError` where it cannot be asked for.
    """
    if not _is_http(url):
        return _tried(url, lambda: elsewhere.look(url))

    def ask() -> Remote:
        with _opened(urllib.request.Request(url, method="HEAD")) as answer:
            length = answer.headers.get("Content-Length", "")
            size = int(length) if length.isdigit() else None
            return Remote(url, size, _version(answer.headers))

    return _tried(url, ask)


def _version(headers: Mapping[str, str]) -> str | None:
    """What an answer says of its content, and changes with it."""
    return headers.get("ETag") or headers.get("Last-Modified")


def read(url: str) -> bytes:
    """The whole content of a small file, such as an index."""
    import io

    file = io.BytesIO()
    fetch(Remote(url), file, most=MOST_SMALL)
    return file.getvalue()


def fetch(remote: Remote, file: IO[bytes], most: int | None = None) -> int:
    """Write the content of a file into an empty one, and return its size.

    Raises `DataError` where that fails for good, or size or hash are not those expected; where it
    has more than `most` bytes, at once.
    """
    limit = remote.size if remote.size is not None else most
    for attempt in range(3):
        file.seek(0)
        file.truncate()
        try:
            got = _filled(remote, file, limit)
            fault = _fault(remote, file, got)
        except Changed:
            fault = "it changed while it was fetched"
        if not fault:
            return got
        if attempt < 2:
            _wait(attempt)
    raise DataError(
        f"{remote.url}: {fault}, three times; the file or its index is not what it was:"
        " fetch or write it anew"
    )


def _filled(remote: Remote, file: IO[bytes], limit: int | None) -> int:
    """Fetch until the end, going on after each cut; how many bytes there are."""
    got = failed = 0
    versions: set[str] = set()  # of what came so far
    while True:
        try:
            whole = _append(remote.url, file, got, limit, versions)
            got = file.tell()
            if whole:
                return got
            fault: Exception = Again("the answer was cut")
        except Again as error:
            fault = error
        more = file.tell() > got
        got = file.tell()
        failed = 0 if more else failed + 1
        if failed >= TRIES:
            raise DataError(
                f"{remote.url}: cannot be fetched ({fault}; {TRIES} tries); start again"
                " when it can be reached, with --resume"
            ) from None
        _wait(failed)


def _fault(remote: Remote, file: IO[bytes], got: int) -> str:
    if remote.size is not None and got != remote.size:
        return f"{got:,} bytes came, and its index says {remote.size:,}"
    for name, digits in remote.hashes:
        if name in HASHES:
            file.seek(0)
            sha = hashlib.new(name)
            while piece := file.read(PIECE):
                sha.update(piece)
            if sha.hexdigest() != digits:
                return f"its {name} is not that of its index"
    return ""


def _append(url: str, file: IO[bytes], start: int, limit: int | None, versions: set[str]) -> bool:
    """Append what follows the first `start` bytes; whether that is all of it."""
    if not _is_http(url):
        return elsewhere.append(url, file, start, limit, versions)
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with _opened(request) as answer:
            same(_version(answer.headers), versions)
            skip = start if start and answer.status != 206 else 0  # a server without ranges
            length = answer.headers.get("Content-Length", "")
            expected = int(length) if length.isdigit() else None
            came = 0
            while piece := answer.read(PIECE):
                came += len(piece)
                new = piece[max(0, skip - (came - len(piece))) :] if skip else piece
                add(url, file, new, limit)
            return expected is None or came >= expected
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left: the size is not known otherwise
            return True
        raise
    except http.client.IncompleteRead as error:
        if not (start and error.partial and request.get_header("Range") is None):
            add(url, file, error.partial if not start else b"", limit)
        return False
    except (OSError, http.client.HTTPException) as error:
        raise Again(str(error) or type(error).__name__) from None


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Only http and https, whatever an answer redirects to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _opened(request: urllib.request.Request) -> Any:
    """The answer to a request.

    Raises `Again`, `MissingData` and `DataError`; HTTPError 416 as it is.
    """
    url = request.full_url
    try:
        return _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            if error.code in PASSING:
                raise Again(f"status {error.code}") from None
            if error.code == 416:
                raise
            if error.code in (404, 410):
                raise MissingData(f"{url}: there is no such file (status {error.code})") from None
            raise DataError(f"{url}: refused with status {error.code} ({error.reason})") from None
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise Again(str(error)) from None


def _tried(url: str, ask: Callable[[], Remote]) -> Remote:
    """The result of `ask`, tried again after faults that may pass."""
    for attempt in range(TRIES):
        try:
            return ask()
        except Again as error:
            fault = error
            _wait(attempt)
    raise DataError(
        f"{url}: cannot be reached ({fault}; {TRIES} tries); look at the address and the network"
    )


def _wait(failed: int) -> None:
    """Longer after each failure, and never two processes in step."""
    time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**failed) * (0.5 + random.random() / 2))


def _is_http(url: str) -> bool:
    return url.partition("://")[0].lower() in ("http", "https")


def joined(url: str, name: str) -> str:
    """The URL of a file beside an index, or in a folder."""
    parts = urllib.parse.urlsplit(url)
    quoted = urllib.parse.quote(name) if _is_http(url) else name
    return urllib.parse.urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quoted}"))
