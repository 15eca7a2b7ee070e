"""Rows of texts and labels from TSV, CSV, JSONL, Parquet and plain lines, one at a time; every fault names its line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.data.corpus import Corpus
from bigmodel_cli.data.image_columns import class_names
from bigmodel_cli.errors import DataError, did_you_mean

ENDINGS = (".tsv", ".csv", ".jsonl", ".parquet", ".txt", ".tsv.gz", ".csv.gz", ".jsonl.gz", ".txt.gz")
Column = str | int


@dataclass(frozen=True)
class Columns:
    """Which columns are read: by name, or by number from 0. `header` None: the first row has names where one is said by name."""

    text: tuple[Column, ...]
    label: Column | None
    header: bool | None = None
    options: tuple[str, ...] = ("data.text", "data.text")  # that say the columns of text

    @property
    def wanted(self) -> list[tuple[str, Column]]:
        """Each column with the option that says it."""
        labels = [] if self.label is None else [("data.label", self.label)]
        return [*zip(self.options, self.text, strict=False), *labels]

    @property
    def named(self) -> bool:
        """Whether the first row of a file with separators holds names."""
        return any(isinstance(c, str) for _, c in self.wanted) if self.header is None else self.header


@dataclass(frozen=True)
class Row:
    """One row: its texts, its label where there are labels, and its place (file and line)."""

    texts: tuple[str, ...]
    label: str | None
    place: str


def read_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file, by its ending; .gz may follow, and what has another ending is plain lines of one column.

    Raises `DataError` naming file and line for what is not UTF-8, not of the form, or without a column, a text or a label.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".jsonl"):
        found = _json_rows(path, columns)
    elif name.endswith(".parquet"):
        found = _parquet_rows(path, columns)
    else:
        split = _comma_rows if name.endswith(".csv") else _tab_rows if name.endswith(".tsv") else _line_rows
        found = _separated(path, columns, split(path))
    for place, values in found:
        texts = tuple(_text(value, place) for value in values[: len(columns.text)])
        yield Row(texts, None if columns.label is None else _label(values[-1], place), place)


def rows_of(paths: Sequence[Path], columns: Columns) -> Iterator[Row]:
    """The rows of several files, one after the other."""
    for path in paths:
        yield from read_rows(path, columns)


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, plain or .gz, without the newlines. Raises `DataError` with the offset of what is not UTF-8."""
    kept = ""
    for piece in Corpus((path,)).pieces(path):
        *whole, kept = (kept + piece).split("\n")
        yield from whole
    if kept:
        yield kept


def _separated(path: Path, columns: Columns, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[str, list[Any]]]:
    """(place, wanted values) of rows that all have as many columns as the first; a separator in a text must not shift them."""
    first: list[str] | None = None
    indices: list[int] = []
    for number, row in rows:
        if first is None:
            first = row
            indices = [_index(f"{path}:{number}", o, c, row, columns.named) for o, c in columns.wanted]
            if columns.named:
                continue
        if len(row) != len(first):
            raise DataError(
                f"{path}:{number}: {_count(row)}, and the first row has {len(first)}; repair the row, or take it out"
            )
        yield f"{path}:{number}", [row[i] for i in indices]


def _index(place: str, option: str, column: Column, first: Sequence[str], named: bool) -> int:
    """Where a column stands, by its number or by the names in the first row."""
    if isinstance(column, int):
        if column >= len(first):
            raise DataError(
                f"{place}: {_count(first)}, and {option} is number {column} (from 0); only .tsv, .csv, .jsonl and .parquet "
                "have several"
            )
        return column
    names = [name.strip() for name in first] if named else []
    if column not in names:
        raise DataError(
            f"{place}: {option}: no column {column!r}; it has {_listed(names)}{did_you_mean(column, names)}"
        )
    return names.index(column)


def _count(row: Sequence[Any]) -> str:
    return f"{len(row)} column{'' if len(row) == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name:.40}" for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "") if names else "none"


def _tab_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Columns between tabs; quotes are characters like others."""
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            yield number, line.removesuffix("\r").split("\t")


def _comma_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Columns between commas, quoted as RFC 4180 says: a quoted value may hold commas, newlines and doubled quotes."""
    reader = csv.reader((line + "\n" for line in lines(path)), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error}); is a quote left open?") from None


def _line_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every line that is not empty is a row of one column."""
    return ((number, [line]) for number, line in enumerate(lines(path), 1) if line.strip())


def _json_rows(path: Path, columns: Columns) -> Iterator[tuple[str, list[Any]]]:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON ({error}); a .jsonl file has one object on each line") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: not an object; a .jsonl file has one object on each line")
        for option, column in columns.wanted:
            if column not in row:
                names = list(row)
                near = did_you_mean(str(column), names)
                raise DataError(f"{place}: {option}: no key {column!r}; it has {_listed(names)}{near}")
        yield place, [row[str(column)] for _, column in columns.wanted]


def _parquet_rows(path: Path, columns: Columns) -> Iterator[tuple[str, list[Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path}: Parquet files need pyarrow: pip install 'bigmodel[parquet]'") from None
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = [
                schema.names[_index(str(path), option, column, schema.names, True)] for option, column in columns.wanted
            ]
            classes = class_names(schema.metadata, names[-1]) if columns.label is not None else ()
            number = 0
            for batch in file.iter_batches(columns=list(dict.fromkeys(names))):
                values = [batch.column(name).to_pylist() for name in names]
                for row in zip(*values, strict=True):
                    place = f"{path}: row {number}"
                    yield place, [*row[:-1], _name(row[-1], classes, place)] if classes else list(row)
                    number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _name(label: Any, classes: tuple[str, ...], place: str) -> Any:
    """The name that the file's schema gives to a numbered label."""
    if not isinstance(label, int):
        return label
    if not 0 <= label < len(classes):
        raise DataError(f"{place}: label {label}, and the classes are 0 to {len(classes) - 1}; leave the row out")
    return classes[label]


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: data.text: {repr(value)[:60]} is no text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell
        raise DataError(f"{place}: data.text: not Unicode at character {error.start}") from None
    return value.strip()


def _label(value: Any, place: str) -> str:
    """A label as the name of a class."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(
            f"{place}: data.label: {'null' if value is None else 'empty'}; give it a class, or leave it out"
        )
    if not isinstance(value, str):
        raise DataError(f"{place}: data.label: {repr(value)[:60]} is neither a word nor a whole number")
    return value.strip()
