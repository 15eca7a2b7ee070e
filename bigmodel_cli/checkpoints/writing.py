"""Writing a checkpoint's file, and what the manifest says of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bigmodel_cli.failpoints import failpoint


def entry_of(
    content: Iterable[bytes | memoryview], write: Callable[[bytes | memoryview], object]
) -> dict[str, Any]:
    """Size and SHA-256 of a file's content, passing each piece to `write`."""
    size, digest = 0, hashlib.sha256()
    for piece in content:
        write(piece)
        digest.update(piece)
        size += len(piece)
    return {"size": size, "sha256": digest.hexdigest()}


def write_file(path: Path, content: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a file, and return its manifest entry."""
    failpoint("checkpoint.write")

    def write(piece: bytes | memoryview) -> None:
        failpoint("checkpoint.writing")
        file.write(piece)

    with open(path, "wb") as file:
        entry = entry_of(content, write)
        file.flush()
        failpoint("checkpoint.wrote")
        os.fsync(file.fileno())
    failpoint("checkpoint.synced")
    return entry
