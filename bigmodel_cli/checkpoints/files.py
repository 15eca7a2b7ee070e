"""The files of a checkpoint as bytes and plain values, read within bounds.

A checkpoint may come from anywhere. So links are not followed, nothing but regular files is opened
(a FIFO would wait for ever, a device may act on being opened), sizes are known before anything is
read, and JSON has types, a depth and a number of values that keep its memory small.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from bigmodel_cli.device import total_memory_of_machine
from bigmodel_cli.errors import CheckpointError, ResourceError

MOST_JSON = 32_000_000
"""Most bytes of a JSON file, or of a tensor header (2,000 blocks have about 20 million)."""
MOST_WIDE = 4_000_000
"""Most bytes where there is non-ASCII text, which may take four bytes per character in memory."""
MOST_VALUES = 1_000_000
"""Most commas, colons and opening brackets: a tensor's entry has 10, and takes 512 bytes."""
MOST_DIGITS = 20
"""Most digits of an integer, as 2^64 has: arithmetic with longer ones is slow."""
CHUNK = 4_000_000
"""Bytes read or written at once: few enough to be hashed from the processor's cache."""
ANOTHER = "use another checkpoint"


@contextlib.contextmanager
def opened(path: Path, most: int, expected: int | None = None) -> Iterator[BufferedReader]:
    """Open a regular file of at most `most` bytes, and of exactly `expected` where that is known.

    Raises `CheckpointError` naming the file, and `ResourceError` where it is larger than the
    machine's memory.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # before it is opened
            raise _not_regular(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):  # replaced in between
                raise _not_regular(path)
            check_size(path, found.st_size, most, expected)
            yield file
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {os.strerror(error.errno or 0)}; {ANOTHER}"
        ) from None


def read_file(path: Path, most: int, expected: int | None = None) -> bytes:
    """The content of a file, within the bounds of `opened`; raises as that does."""
    with opened(path, most, expected) as file:
        content = file.read(os.fstat(file.fileno()).st_size + 1)
    check_size(path, len(content), most, expected)
    return content


def _not_regular(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: a link, folder, FIFO or device, where a file belongs; it is refused; {ANOTHER}"
    )


def check_size(path: Path, size: int, most: int, expected: int | None) -> None:
    """Raise where a file of this size is not the one that is expected, or too large to be read."""
    if expected is not None and size != expected:
        raise CheckpointError(
            f"{path}: {size:,} bytes, and manifest.json says {expected:,}: truncated or changed;"
            f" {ANOTHER}"
        )
    if size > most:
        raise CheckpointError(
            f"{path}: {size:,} bytes, and such a file has at most {most:,}; {ANOTHER}"
        )
    if size > (there := total_memory_of_machine()):
        raise ResourceError(
            f"{path}: {size:,} bytes, and this machine has {there:,} of memory; use a larger one"
        )


def parse_json(content: bytes, digits: int = MOST_DIGITS, infinite: bool = False) -> Any:
    """The values of JSON text. Raises `ValueError` saying what is wrong with it.

    Also refused: duplicate names, numbers that are not finite (with `infinite`, `Infinity` alone
    may stand there) or have more than `digits` digits, and text that is too long, too deep, or has
    too many values.
    """
    if len(content) > (MOST_JSON if content.isascii() else MOST_WIDE):
        raise ValueError(f"{len(content):,} bytes are too many")
    if sum(content.count(sign) for sign in (b",", b":", b"[", b"{")) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values")
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=lambda text: _whole(text, digits),
            parse_float=_finite,
            parse_constant=_infinite if infinite else _finite,
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _whole(text: str, most: int) -> int:
    if len(text) > most:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _infinite(text: str) -> float:
    return math.inf if text == "Infinity" else _finite(text)


def is_whole(value: Any, most: int) -> bool:
    """Whether a value is an integer from 0 to `most`; booleans are not."""
    return type(value) is int and 0 <= value <= most


def clipped(text: str, most: int = 200) -> str:
    """A file's text as a message may show it."""
    return text if len(text) <= most else text[:most] + " ..."
