"""What a checkpoint was trained on, as hashes of the items' content, to tell whether an evaluation
shows it what it has seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np

from bigmodel_cli.errors import CheckpointError

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
ASSET = "trained_on.bin"
MOST = 1 << 16
"""Most hashes that are kept of a set: the smallest ones, so that all items are equally likely to be
kept.
"""
MOST_SETS = 64
MOST_HEAD = 1 << 16
"""Most bytes of the header line."""
CUT = 8
"""A block of text ends after about this many lines."""
LEAST_BYTES = 256
"""Least bytes of a block: a shorter one may be in two texts by chance."""
MOST_BYTES = 1 << 16
"""Most bytes of a block."""
LONG_LINE = 1024
"""In bytes. A longer line is read as pieces, since a text may be a single line."""
WINDOW, MEAN_PIECE = 32, 128
"""A piece ends where a hash of the last `WINDOW` bytes says so, on average after `MEAN_PIECE`
bytes.
"""


def hash_of(*parts: bytes) -> int:
    """64 bits of an item's content: the first of SHA-256.

    The boundaries between several parts count.
    """
    sha = hashlib.sha256(parts[0])
    for part in parts[1:]:
        sha.update(b"\xff" + part)  # no byte of UTF-8
    return int.from_bytes(sha.digest()[:8], "little")


def as_hashes(numbers: Iterable[int]) -> Hashes:
    """(N,) uint64."""
    return np.fromiter(numbers, np.uint64)


def blocks(pieces: Iterable[str]) -> Iterator[int]:
    """The hash of each block of lines of a document.

    A block ends where a line's own checksum says so: the same lines are the same blocks wherever in
    a text they are. So are the pieces of a long line (content-defined chunking, as in
    Muthitacharoen et al. 2001).
    """
    block: list[bytes] = []
    size = 0
    for piece in pieces:
        for line in piece.encode("utf-8").splitlines(keepends=True):
            for part in (line,) if len(line) <= LONG_LINE else _parts(line):
                block.append(part)
                size += len(part)
                if (crc32(part) % CUT == 0 and size >= LEAST_BYTES) or size > MOST_BYTES:
                    yield hash_of(b"".join(block))
                    block, size = [], 0
    if block:
        yield hash_of(b"".join(block))


def _parts(line: bytes) -> list[bytes]:
    """A long line in pieces that end where its bytes say so, wherever it begins."""
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(line, np.uint8), WINDOW)
    mixed = np.zeros(len(windows), np.uint64)
    for number in np.ascontiguousarray(windows).view("<u8").T:  # 8 bytes each
        # modulo 2^64; odd (Knuth)
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ number) * np.uint64(0x9E3779B97F4A7C15)
    ends = np.flatnonzero(mixed >> np.uint64(32) < np.uint64(2**32 // MEAN_PIECE)) + WINDOW
    places = [0, *ends.tolist(), len(line)]
    return [line[a:b] for a, b in pairwise(places) if b > a]


@dataclass(frozen=True)
class Seen:
    """The set of items that a task was learnt from: sorted hashes, all of them or (not `whole`) the
    smallest.
    """

    task: str
    hashes: Hashes
    whole: bool

    @classmethod
    def of(cls, task: str, items: Hashes) -> Seen:
        """The record of a training split."""
        unique = np.unique(items)
        return cls(task, unique[:MOST], len(unique) <= MOST)

    def joined(self, other: Seen) -> Seen:
        """The union of both sets, known up to where both are known."""
        bound = min(self.bound, other.bound)
        unique = np.unique(np.concatenate((self.hashes, other.hashes)))
        unique = unique[unique <= bound]
        return Seen(self.task, unique[:MOST], self.whole and other.whole and len(unique) <= MOST)

    @property
    def bound(self) -> Any:
        """The largest hash for which membership is known."""
        return np.uint64(2**64 - 1) if self.whole else self.hashes[-1]

    def known(self, items: Hashes) -> Any:
        """(N,) bool: the items for which membership is known."""
        return items <= self.bound

    def holds(self, items: Hashes) -> Any:
        """(N,) bool: the items that are known to be in the set."""
        return np.isin(items, self.hashes)


def dump(sets: Iterable[Seen]) -> bytes:
    """Several sets as bytes: a line of JSON about them, then their hashes, 8 bytes each,
    little-endian.
    """
    sets = list(sets)
    head = [{"task": s.task, "count": len(s.hashes), "whole": s.whole} for s in sets]
    return (
        json.dumps(head).encode() + b"\n" + b"".join(s.hashes.astype("<u8").tobytes() for s in sets)
    )


def load(content: bytes | None) -> list[Seen]:
    """The inverse of `dump`; empty for None, a checkpoint without a record.

    Raises `CheckpointError`.
    """
    if content is None:
        return []
    head, _, body = content.partition(b"\n")
    try:
        if len(head) > MOST_HEAD:
            raise ValueError("its head is too long")
        entries = json.loads(head)
        well = isinstance(entries, list) and len(entries) <= MOST_SETS
        well = well and all(
            type(e["task"]) is str
            and type(e["whole"]) is bool
            and type(e["count"]) is int
            and 0 < e["count"] <= MOST
            for e in entries
        )
        if not well or len(body) != 8 * sum(e["count"] for e in entries):
            raise ValueError("its parts do not fit one another")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{ASSET}: damaged ({error}); use another checkpoint") from None
    sets, place = [], 0
    for entry in entries:
        hashes = np.frombuffer(body, "<u8", entry["count"], place).astype(np.uint64)
        if (hashes[1:] <= hashes[:-1]).any():
            raise CheckpointError(f"{ASSET}: damaged (not in order); use another checkpoint")
        sets.append(Seen(entry["task"], hashes, entry["whole"]))
        place += hashes.nbytes
    return sets


def joined(sets: Iterable[Seen]) -> list[Seen]:
    """One set for each task."""
    found: dict[str, Seen] = {}
    for seen in sets:
        found[seen.task] = found[seen.task].joined(seen) if seen.task in found else seen
    return list(found.values())
