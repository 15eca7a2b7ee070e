"""JSONL and Parquet as shards: rows of named values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bigmodel_cli.data.reading import LONGEST_LINE, Twice, once
from bigmodel_cli.data.shards.records import (
    Form,
    Records,
    Value,
    opened,
    read_piece,
    read_range,
    text_of,
)
from bigmodel_cli.errors import DataError
from bigmodel_cli.heeding import heeding
from bigmodel_cli.packages import need


@dataclass(frozen=True)
class JSONLines(Form):
    """An object on each line; packed by gzip or zstd, or not."""

    packed_by: str = ""

    def open(self, path: Path, name: str) -> Records:
        return _Lines(self.packed_by, path, name)


class _Lines(Records):
    """Read from the first to the last; samples by number are searched from the start."""

    def __init__(self, packed_by: str, path: Path, name: str) -> None:
        self.packed_by, self.path, self.name = packed_by, path, name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def sample(self, number: int) -> Mapping[str, Value]:
        for index, row in enumerate(self):
            if index == number:
                return row
        raise DataError(f"{self.name}: it has no row {number}")

    def __iter__(self) -> Iterator[Mapping[str, Value]]:
        for number, line in enumerate(self.lines(), 1):
            if not line.strip():
                continue
            where = f"{self.name}:{number}"
            try:
                row = json.loads(
                    text_of(line, where).removeprefix("\ufeff"), object_pairs_hook=once
                )
            except Twice as error:
                raise DataError(f"{where}: the key {error} stands twice in one object") from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: not an object; each line has one")
            yield row

    def lines(self) -> Iterator[bytes]:
        """The lines, without holding more than one piece and one line."""
        parts: list[bytes] = []
        length = 0
        with opened(self.path, self.packed_by, self.name) as file:
            while piece := read_piece(file, self.name):
                *whole, last = piece.split(b"\n")
                for line in whole:
                    yield b"".join([*parts, line])
                    parts, length = [], 0
                parts.append(last)
                length += len(last)
                if length > LONGEST_LINE:
                    raise DataError(f"{self.name}: a line of more than {LONGEST_LINE:,} bytes")
        if parts:
            yield b"".join(parts)


@dataclass(frozen=True)
class PlainText(Form):
    """A whole file as one sample, "text"."""

    def open(self, path: Path, name: str) -> Records:
        return _File(path, name)


class _File(Records):
    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __len__(self) -> int:
        return 1

    def sample(self, number: int) -> Mapping[str, Value]:
        content = read_range(self.path, self.name, 0, self.path.stat().st_size)
        return {"text": text_of(content, self.name).removeprefix("\ufeff")}


@dataclass(frozen=True)
class Parquet(Form):
    """The columns of a Parquet file; `columns` are those that are used, () for all."""

    columns: tuple[str, ...] = ()

    def of_fields(self, names: tuple[str, ...]) -> Parquet:
        return Parquet(names)

    def open(self, path: Path, name: str) -> Records:
        return _Rows(self.columns, path, name)


class _Rows(Records):
    """Rows, one group of them in memory at a time."""

    def __init__(self, columns: tuple[str, ...], path: Path, name: str) -> None:
        self.path, self.name = path, name
        with self.file() as file:
            meta = file.metadata
            self.starts, self.count = [], 0
            for group in range(meta.num_row_groups):
                self.starts.append(self.count)
                self.count += meta.row_group(group).num_rows
            names = file.schema_arrow.names
            self.read = [c if c in names else c.split(".")[0] for c in columns]
            lacking = [c for c, own in zip(columns, self.read, strict=True) if own not in names]
        if lacking:
            raise DataError(
                f"{name}: it has no column {lacking[0]!r}; it has"
                f" {', '.join(names)}: name one (data.field, data.image,"
                " data.label)"
            )
        self.kept: tuple[int, list[dict[str, Any]]] = (-1, [])

    def file(self) -> Any:
        """The file, opened. Raises `DataError` where it is not Parquet."""
        pyarrow, pq = (need(n, "parquet", "Parquet") for n in ("pyarrow", "pyarrow.parquet"))
        try:
            return pq.ParquetFile(self.path, memory_map=False)
        except FileNotFoundError:
            raise
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.name}: cannot be read as Parquet: {error}") from None

    def __len__(self) -> int:
        return self.count

    def sample(self, number: int) -> Mapping[str, Value]:
        import bisect

        group = bisect.bisect_right(self.starts, number) - 1
        return self.group(group)[number - self.starts[group]]

    def __iter__(self) -> Iterator[Mapping[str, Value]]:
        for group in range(len(self.starts)):
            yield from self.group(group)

    def group(self, number: int) -> list[dict[str, Any]]:
        """The rows of a group."""
        if self.kept[0] != number:
            pyarrow = need("pyarrow", "parquet", "Parquet")
            with self.file() as file:
                try:
                    table = heeding(partial(file.read_row_group, number, columns=self.read or None))
                    self.kept = (number, table.to_pylist())
                except (pyarrow.ArrowException, OSError) as error:
                    raise DataError(
                        f"{self.name}: group {number} cannot be read: {error}"
                    ) from None
        return self.kept[1]
