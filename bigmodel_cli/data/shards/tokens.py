"""Files of tokens, one after the other: packed shards, and Megatron's .bin with its .idx."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.data.shards.records import Form, Records, Value, read_ranges
from bigmodel_cli.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
MEGATRON = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Megatron's numbers for the types of tokens; 6 and 7 are floating-point numbers."""
HEAD = 34
"""Bytes of an index before its lengths."""
PIECE = 1 << 20
"""Sequences that are looked at at once."""


@dataclass(frozen=True)
class Flat(Form):
    """Tokens of one type from `start` on: `count` of them. The shard is one sample, "tokens"."""

    dtype: str
    start: int
    count: int

    def flat(self) -> Flat:
        return self

    def open(self, path: Path, name: str) -> Records:
        return _Whole(self, path, name)

    def take(self, path: Path, name: str, ranges: Sequence[tuple[int, int]]) -> list[Any]:
        """(last - first,) the tokens `first` to `last` of each range."""
        width = np.dtype(self.dtype).itemsize
        places = [(self.start + a * width, self.start + b * width) for a, b in ranges]
        return [np.frombuffer(data, self.dtype) for data in read_ranges(path, name, places)]


class _Whole(Records):
    def __init__(self, form: Flat, path: Path, name: str) -> None:
        self.form, self.path, self.name = form, path, name

    def __len__(self) -> int:
        return 1

    def sample(self, number: int) -> Mapping[str, Value]:
        return {"tokens": self.form.take(self.path, self.name, [(0, self.form.count)])[0]}


def megatron(read: Callable[[int, int], bytes], length: int, size: int, name: str) -> Flat:
    """How a .bin of `size` bytes is read, as its .idx of `length` bytes says, of which `read(first,
    end)` gives a part.

    The .idx: a mark of 9 bytes, the version 1 (uint64), the type (uint8), the number of sequences
    and of documents (uint64), the sequences' lengths (int32), where each begins (int64), and at
    which sequence each document does (int64); that of other kinds of data has a byte more for each
    sequence. Raises `DataError` where the sequences do not follow one another through the file.
    """
    head = read(0, HEAD) if length >= HEAD else b""
    if head[:9] != MAGIC or struct.unpack("<Q", head[9:17]) != (1,):
        raise DataError(f"{name}: not the index of a Megatron data set (version 1)")
    code, sequences, documents = struct.unpack("<BQQ", head[17:])
    dtype = MEGATRON.get(code)
    if dtype is None:
        raise DataError(f"{name}: its tokens are of type {code}, which is not one of integers")
    if length < HEAD + 12 * sequences + 8 * documents:
        raise DataError(
            f"{name}: it says {sequences:,} sequences, and is too short; fetch it again"
        )
    width, total = np.dtype(dtype).itemsize, 0
    for first in range(0, sequences, PIECE):
        end = min(sequences, first + PIECE)
        lengths = np.frombuffer(read(HEAD + 4 * first, HEAD + 4 * end), "<i4").astype(np.int64)
        place = HEAD + 4 * sequences
        starts = np.frombuffer(read(place + 8 * first, place + 8 * end), "<i8")
        before = total + np.cumsum(lengths) - lengths
        if (lengths < 0).any() or (starts != before * width).any():
            raise DataError(f"{name}: its sequences do not follow one another; write it anew")
        total += int(lengths.sum())
    _check_documents(read, HEAD + 12 * sequences, documents, sequences, name)
    if total * width != size:
        raise DataError(
            f"{name}: its sequences have {total * width:,} bytes, and the .bin {size:,}; they are"
            " not of one another"
        )
    return Flat(dtype, 0, total)


def _check_documents(
    read: Callable[[int, int], bytes], place: int, documents: int, sequences: int, name: str
) -> None:
    """Raise `DataError` where documents do not begin at the first sequence and end behind the
    last.
    """
    before = 0
    for first in range(0, documents, PIECE):
        end = min(documents, first + PIECE)
        starts = np.frombuffer(read(place + 8 * first, place + 8 * end), "<i8")
        is_first = first > 0 or starts[0] == 0
        if not is_first or starts[0] < before or (np.diff(starts) < 0).any():
            raise DataError(f"{name}: its documents do not follow one another; write it anew")
        before = int(starts[-1])
    if documents and before != sequences:
        raise DataError(
            f"{name}: its documents end at sequence {before:,}, and it has {sequences:,}; write it"
            " anew"
        )


def packed_head(tokens: int, dtype: str, source: str) -> bytes:
    """The head of a packed shard: a safetensors file with one tensor "tokens" (N,)."""
    width = np.dtype(dtype).itemsize
    head = {
        "__metadata__": {"format": "bigmodel-shards", "source": source},
        "tokens": {
            "dtype": {1: "U8", 2: "U16", 4: "U32"}[width],
            "shape": [tokens],
            "data_offsets": [0, tokens * width],
        },
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def packed(entry: Any, name: str) -> Flat:
    """How a packed shard is read, as its index says. Raises `DataError`."""
    known = isinstance(entry, dict) and {"file", "bytes", "tokens", "dtype", "start", "sha256"}
    if not known or not known <= entry.keys() or entry["dtype"] not in ("<u2", "<u4"):
        raise DataError(f"{name}: an entry is not that of a shard; pack it anew")
    numbers = [entry[key] for key in ("bytes", "tokens", "start")]
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise DataError(f"{name}: an entry has no whole numbers; pack it anew")
    flat = Flat(entry["dtype"], entry["start"], entry["tokens"])
    if flat.start + flat.count * np.dtype(flat.dtype).itemsize != entry["bytes"]:
        raise DataError(f"{name}: {entry['file']}: its sizes do not fit one another; pack it anew")
    return flat
