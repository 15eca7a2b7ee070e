"""The cached description of all options: making it takes a second, and reading it some
milliseconds.

It is made anew when any file of the package has changed, and always when there are plugins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel_cli.cache_home import cache_directory
from bigmodel_cli.errors import ResourceError
from bigmodel_cli.outputs import write_output

PACKAGE = Path(__file__).resolve().parent.parent


def description(plugins: bool = False) -> dict[str, Any]:
    """The result of `describe`, cached unless there are `plugins`.

    A cache that cannot be read or written is ignored.
    """
    if plugins:
        return _made()
    key = hashlib.sha256(json.dumps(sorted(_files(str(PACKAGE)))).encode()).hexdigest()
    with contextlib.suppress(OSError, ResourceError):
        head, _, body = _place().read_bytes().partition(b"\n")
        if head == _digest(key, body):
            found: dict[str, Any] = json.loads(body)
            return found
    made = _made()
    with contextlib.suppress(ResourceError):
        body = json.dumps(made).encode()
        write_output(_place(), [_digest(key, body), b"\n", body])
    return made


def _digest(key: str, body: bytes) -> bytes:
    """What the first line of the kept file says: whole, and of these files."""
    return hashlib.sha256(key.encode() + body).hexdigest().encode()


def _made() -> dict[str, Any]:
    from bigmodel_cli.options.describe import describe

    return describe()


def _place() -> Path:
    """One file for each place where the package is installed."""
    return (
        cache_directory("options") / f"{hashlib.sha256(os.fsencode(PACKAGE)).hexdigest()[:16]}.txt"
    )


def _files(folder: str) -> Iterator[list[Any]]:
    """What identifies the state of each source file, including the inode's change time, which
    nobody can set back.
    """
    for entry in os.scandir(folder):
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _files(entry.path)
        elif entry.name.endswith((".py", ".yaml")):
            status = entry.stat()
            yield [
                entry.path,
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_ino,
            ]
