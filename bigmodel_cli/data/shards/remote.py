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
    """A fault that may pass, `after` so many seconds where the server says it; `slow` where bytes
    came, and too few of them.
    """

    def __init__(self, fault: str, after: float | None = None, slow: bool = False) -> None:
        super().__init__(fault)
        self.after, self.slow = after, slow


class Changed(Exception):
    """What comes is not of the file whose beginning came, or that was looked at before."""


def same(version: str | None, versions: set[str]) -> None:
    """Note the version of what comes. Raises `Changed` where what came before is of another."""
    if version is not None:
        versions.add(version)
    if len(versions) > 1:
        raise Changed


def add(url: str, file: IO[bytes], piece: bytes, limit: int | None) -> None:
    """Write a piece. Raises `DataError`, and writes nothing, where the file would be longer than it
    may be.
    """
    if limit is not None and file.tell() + len(piece) > limit:
        raise DataError(
            f"{url}: it has more than the {limit:,} bytes that it may have; write its index anew"
        )
    rest = memoryview(piece)
    while rest:
        rest = rest[file.write(rest) :]
