"""Files from elsewhere: over http(s) with the standard library, else through fsspec.

An answer that is cut goes on where it ended, where it is known that what follows is of the same
content; a fault that may pass is tried again, a little later each time. Sizes and versions are
checked, and hashes where an index gives them.
"""

from __future__ import annotations

import hashlib
import io
import random
import time
import urllib.parse
from collections.abc import Callable
from typing import IO

from bigmodel_cli.data.shards import elsewhere, web
from bigmodel_cli.data.shards.checking import known
from bigmodel_cli.data.shards.remote import PIECE, Again, Changed, Remote
from bigmodel_cli.errors import DataError

TRIES = 8
"""Times in a row that a request may fail, without a byte gained, before that is said."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0  # seconds
LONGEST_ASKED = 300.0
"""Seconds for which a server may ask to be left alone."""
MOST_SMALL = 1 << 28
"""Most bytes of an index."""


def is_url(text: str) -> bool:
    """Whether a text names a place by a scheme: not a path."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and scheme.isalnum() and len(scheme) > 1


def look(url: str) -> Remote:
    """The size and version of a file.

    Raises `MissingData` where there is none, `DataError` where it cannot be asked for.
    """
    return _tried(url, lambda: (web if _is_http(url) else elsewhere).look(url))


def read(url: str) -> bytes:
    """The whole content of a small file, such as an index."""
    file = io.BytesIO()
    fetch(Remote(url), file, most=MOST_SMALL)
    return file.getvalue()


def fetch(remote: Remote, file: IO[bytes], most: int | None = None) -> int:
    """Write the content of a file into an empty one, and return its size.

    Raises `DataError` where that fails for good, or size, version or hash are not those expected;
    where it has more than `most` bytes, at once.
    """
    limit = remote.size if remote.size is not None else most
    for attempt in range(3):
        file.seek(0)
        file.truncate()
        try:
            got, _ = _filled(remote, file, limit)
            fault = _fault(remote, file, got)
        except Changed:
            fault = "it changed while it was fetched"
            if remote.version is not None and look(remote.url).version != remote.version:
                raise DataError(
                    f"{remote.url}: it is not the file that was there at the start; start again"
                ) from None
        if not fault:
            return got
        if attempt < 2:
            _wait(attempt)
    raise DataError(
        f"{remote.url}: {fault}, three times; the file or its index is not what it was:"
        " fetch or write it anew"
    )


def measured(url: str) -> tuple[int, str]:
    """(size, SHA-256) of a file whose server says neither its size nor what it is of: read through,
    and where the server does not mark its end, until two readings in a row are the same.
    """
    before: tuple[int, str] | None = None
    for _ in range(TRIES):
        file = _Hashing()
        try:
            size, is_sure = _filled(Remote(url), file, None)
        except Changed:
            continue
        found = size, file.sha.hexdigest()
        if is_sure or found == before:
            return found
        before = found
    raise DataError(f"{url}: no two readings of it are the same; look at its server")


class _Hashing(io.BytesIO):
    """Counts and hashes what is written, and keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.sha, self.size = hashlib.sha256(), 0

    def write(self, data: object) -> int:
        """Hash these bytes; how many they are."""
        piece = bytes(data)  # type: ignore[call-overload]
        self.sha.update(piece)
        self.size += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self.size

    def seek(self, place: int, whence: int = 0) -> int:
        return self.size

    def truncate(self, size: int | None = None) -> int:
        """To nothing: that alone is asked for."""
        self.sha, self.size = hashlib.sha256(), 0
        return 0


def _filled(remote: Remote, file: IO[bytes], limit: int | None) -> tuple[int, bool]:
    """Fetch until the end, going on after each cut; (how many bytes there are, whether its server
    said that these are all).

    Raises `Changed`.
    """
    url, source = remote.url, web if _is_http(remote.url) else elsewhere
    got = failed = 0
    versions = {remote.version} if remote.version is not None else set[str]()
    while True:
        fault = Again("the answer was cut")
        try:
            whole = source.append(url, file, got, limit, versions)
            if whole is None and remote.size is not None:
                whole = file.tell() >= remote.size
            if whole is not False:
                return file.tell(), whole is True
        except Again as error:
            fault = error
        has_more = file.tell() > got and not fault.slow
        got = file.tell()
        if got and not (known(remote.hashes) or any(map(web.is_exact, versions))):
            # nothing would tell that what follows is of another content
            file.seek(0)
            file.truncate()
            got, has_more = 0, False
        failed = 0 if has_more else failed + 1
        if failed >= TRIES:
            raise DataError(
                f"{url}: cannot be fetched ({fault}; {TRIES} tries); start again"
                " when it can be reached, with --resume"
            ) from None
        _wait(failed, fault.after)


def _fault(remote: Remote, file: IO[bytes], got: int) -> str:
    if remote.size is not None and got != remote.size:
        return f"{got:,} bytes came, and its index says {remote.size:,}"
    wanted = known(remote.hashes)
    if wanted is None:
        return ""
    file.seek(0)
    sha = hashlib.new(wanted[0])
    while piece := file.read(PIECE):
        sha.update(piece)
    return "" if sha.hexdigest() == wanted[1] else f"its {wanted[0]} is not that of its index"


def _tried(url: str, ask: Callable[[], Remote]) -> Remote:
    """The result of `ask`, tried again after faults that may pass."""
    for attempt in range(TRIES):
        try:
            return ask()
        except Again as error:
            fault = error
            _wait(attempt, error.after)
    raise DataError(
        f"{url}: cannot be reached ({fault}; {TRIES} tries); look at the address and the network"
    )


def _wait(failed: int, asked: float | None = None) -> None:
    """Longer after each failure, as long as was asked for, and never two processes in step."""
    own = min(LONGEST_WAIT, FIRST_WAIT * 2**failed) * (0.5 + random.random() / 2)
    time.sleep(max(own, min(LONGEST_ASKED, asked or 0.0)))


def _is_http(url: str) -> bool:
    return url.partition("://")[0].lower() in ("http", "https")


def joined(url: str, name: str) -> str:
    """The URL of a file beside an index, or in a folder."""
    parts = urllib.parse.urlsplit(url)
    quoted = urllib.parse.quote(name, errors="surrogateescape") if _is_http(url) else name
    return urllib.parse.urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quoted}"))
