"""A file at a URL, and the faults of fetching it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from bigmodel_cli.errors import DataError

PIECE = 1 << 18  # bytes


@dataclass(frozen=True)
class Remote:
    """A file at a URL: its size, and `version`, which changes with its content (None: unknown)."""

    url: str
    size: int | None = None
    version: str | None = None
    hashes: tuple[tuple[str, str], ...] = ()
    """(algorithm, hexadecimal digits) that an index gives."""


class Again(Exception):
    """A fault that may pass."""


class Changed(Exception):
    """What follows is not of the file whose beginning came."""


def same(version: str | None, versions: set[str]) -> None:
    """Note the version of what comes. Raises `Changed` where what came before is of another."""
    if version is not None:
        versions.add(version)
    if len(versions) > 1:
        raise Changed


def add(url: str, file: IO[bytes], piece: bytes, limit: int | None) -> None:
    """Write a piece. Raises `DataError` where the file is longer than it may be."""
    file.write(piece)
    if limit is not None and file.tell() > limit:
        raise DataError(
            f"{url}: it has more than the {limit:,} bytes that it may have; write its index anew"
        )
