"""Files of tokens, one after the other: packed shards, and Megatron's .bin with its .idx."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.data.shards.records import Form, Records, Value, read_ranges
from bigmodel_cli.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
MEGATRON = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Megatron's numbers for the types of tokens; 6 and 7 are floating-point numbers."""
MOST_HEADER = 1 << 20
"""Most bytes of the head of a packed shard."""


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


def megatron(index: bytes, size: int, name: str) -> Flat:
    """How a .bin of `size` bytes is read, as its .idx says.

    The .idx: a mark of 9 bytes, the version 1 (uint64), the type (uint8), the number of sequences
    and of documents (uint64), the sequences' lengths (int32), where each begins (int64), and the
    documents. Raises `DataError` where the sequences do not follow one another through the file.
    """
    if index[:9] != MAGIC or len(index) < 34 or struct.unpack("<Q", index[9:17]) != (1,):
        raise DataError(f"{name}: not the index of a Megatron data set (version 1)")
    code, sequences, documents = struct.unpack("<BQQ", index[17:34])
    dtype = MEGATRON.get(code)
    if dtype is None:
        raise DataError(f"{name}: its tokens are of type {code}, which is not one of integers")
    if len(index) < 34 + 12 * sequences + 8 * documents:
        raise DataError(
            f"{name}: it says {sequences:,} sequences, and is too short; fetch it again"
        )
    lengths = np.frombuffer(index, "<i4", sequences, 34).astype(np.int64)
    starts = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
    width = np.dtype(dtype).itemsize
    ends = np.cumsum(lengths) * width
    if (lengths < 0).any() or (starts != ends - lengths * width).any():
        raise DataError(f"{name}: its sequences do not follow one another; write it anew")
    total = int(lengths.sum())
    if total * width != size:
        raise DataError(
            f"{name}: its sequences have {total * width:,} bytes, and the .bin {size:,}; they are"
            " not of one another"
        )
    return Flat(dtype, 0, total)


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
