"""The samples of shards, whatever the format."""

from __future__ import annotations

import bz2
import gzip
import io
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigmodel_cli.errors import DataError
from bigmodel_cli.packages import need

if TYPE_CHECKING:
    from bigmodel_cli.data.shards.tokens import Flat

Value = Any
"""A field of a sample: str, bytes, int, float, a list, an object of JSON, or an array."""
PIECE = 1 << 20  # bytes
STREAMS = {"zstd": "zstd", "br": "brotli"}
"""Compressions that pyarrow reads, and what it calls them."""


class Records:
    """The samples of a shard by number.

    No file stays open: one that the cache removes gives its room back at once.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, number: int) -> Mapping[str, Value]:
        """The fields of a sample. Raises `DataError` naming the shard and the sample."""

    def __iter__(self) -> Iterator[Mapping[str, Value]]:
        return (self.sample(number) for number in range(len(self)))


class Form:
    """How the files of a source are read."""

    def flat(self) -> Flat | None:
        """Where its tokens are, of a file that is tokens one after the other."""
        return None

    def of_fields(self, names: tuple[str, ...]) -> Form:
        """The same, of which only these fields are read, where that is less work; others are there,
        as None.
        """
        return self

    @abstractmethod
    def open(self, path: Path, name: str) -> Records:
        """The samples in a file; `name` is what it is called in messages.

        Raises `DataError` where it is damaged.
        """


def opened(path: Path, packed_by: str, name: str, unpacked: int = 0) -> Any:
    """A file for reading, unpacked: `unpacked` bytes at most, where the packing needs to know it.

    Raises `DataError` where it cannot be opened, or the compression is not known.
    """
    try:
        if packed_by in ("", "gz", "bz2"):
            openers: dict[str, Any] = {"": open, "gz": gzip.open, "bz2": bz2.open}
            return openers[packed_by](path, "rb")
        if packed_by in STREAMS or packed_by == "snappy":
            pyarrow = need("pyarrow", "parquet", f"{name}, packed by {packed_by},")
            if packed_by in STREAMS:
                return pyarrow.input_stream(str(path), compression=STREAMS[packed_by])
            found = pyarrow.decompress(path.read_bytes(), unpacked, "snappy", asbytes=True)
            return io.BytesIO(found)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from None
    raise DataError(
        f"{name}: packed by {packed_by}, and read are zstd, gz, bz2, br and snappy; write it so"
    )


def read_piece(file: Any, name: str, size: int = PIECE) -> bytes:
    """The next bytes of an opened file; b"" at its end. Raises `DataError` where it is damaged."""
    try:
        return bytes(file.read(size))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{name}: cannot be unpacked ({error}); fetch or write it again") from None


def read_range(path: Path, name: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file.

    Raises `DataError` where it has fewer, and `FileNotFoundError` where it was removed.
    """
    return read_ranges(path, name, [(start, end)])[0]


def read_ranges(path: Path, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The same for several ranges of one file, which is opened once."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = [os.pread(descriptor, end - start, start) for start, end in ranges]
    finally:
        os.close(descriptor)
    for data, (start, end) in zip(found, ranges, strict=True):
        if len(data) != end - start:
            raise DataError(
                f"{name}: it ends before byte {end:,}, where a sample does; write it anew"
            )
    return found


def offsets_at(path: Path, name: str, first: int, header: int = 4) -> tuple[int, Any, int]:
    """(count, offsets (count + 1,) int64, size of the file) of a shard that begins with its count
    and the offsets of its samples, both uint32, as MDS and litdata write them.

    Raises `DataError` where they do not fit the file.
    """
    size = path.stat().st_size
    if size < first + header:
        raise DataError(f"{name}: {size:,} bytes, fewer than the head of a shard; fetch it again")
    count = int(np.frombuffer(read_range(path, name, first, first + 4), "<u4")[0])
    end = first + header + 4 * (count + 1)
    if end > size:
        raise DataError(
            f"{name}: it says that it has {count:,} samples, for whose offsets it is too short;"
            " fetch or write it again"
        )
    offsets = np.frombuffer(read_range(path, name, first + header, end), "<u4").astype(np.int64)
    if (np.diff(offsets) < 0).any() or offsets[-1] > size or offsets[0] < end:
        raise DataError(
            f"{name}: the offsets of its samples do not fit it; fetch or write it again"
        )
    return count, offsets, size


class OffsetRecords(Records):
    """Samples of a shard that begins with its count and their offsets, as MDS and litdata write."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.count, self.offsets, _ = offsets_at(path, name, 0)

    def __len__(self) -> int:
        return self.count

    def content(self, number: int) -> tuple[bytes, str]:
        """The bytes of a sample, and where it is, for people."""
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        return read_range(self.path, self.name, start, end), f"{self.name}: sample {number}"


class Fields:
    """Takes the fields of a sample from its bytes, checking each length."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.place = data, where, 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        found = self.data[self.place : self.place + size]
        if size < 0 or len(found) != size:
            raise DataError(f"{self.where}: the lengths of its fields lie; write it anew")
        self.place += size
        return found

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self.data) - self.place)

    def sizes(self, count: int) -> list[int]:
        """The next numbers, uint32."""
        return [int(n) for n in np.frombuffer(self.take(4 * count), "<u4")]


def is_among(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a field is one of those that are asked for (() are all), or holds or is a part of
    one.
    """
    return not wanted or any(
        f"{w}.".startswith(f"{name}.") or f"{name}.".startswith(f"{w}.") for w in wanted
    )


def text_of(data: bytes, where: str) -> str:
    """UTF-8 as text. Raises `DataError`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}") from None


def array_of(data: bytes, dtype: str, shape: tuple[int, ...] | None, where: str) -> Any:
    """Bytes as an array. Raises `DataError` where they do not fill it."""
    try:
        flat = np.frombuffer(data, dtype)
        return flat if shape is None else flat.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: not an array of {dtype} {shape or ''}: {error}") from None


def cannot_read(where: str, field: str, kind: str) -> DataError:
    """The error for a field whose reading would run code, or of an unknown kind."""
    why = (
        "it is pickled, and reading it could run any code"
        if "pkl" in kind or "pickle" in kind
        else "not a kind that is read here"
    )
    return DataError(f"{where}: field {field!r} is of kind {kind!r}: {why}; write it otherwise")
