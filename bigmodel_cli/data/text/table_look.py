"""The columns of a table, from its first rows: which hold texts, and which may hold labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bigmodel_cli.data.reading import dotted, is_json_lines, json_rows, lookup
from bigmodel_cli.data.text.table_columns import SEPARATORS, Column, Columns
from bigmodel_cli.data.text.table_files import is_separated, splitting
from bigmodel_cli.data.text.table_header import (
    LABELS,
    LANGUAGES,
    NAMES,
    WORD,
    column_name,
    is_number,
)
from bigmodel_cli.data.text.table_parquet import parquet_names, parquet_rows
from bigmodel_cli.errors import DataError

LOOKED_AT = 2000
"""Number of rows."""
MOST_LABELS = 200
FEW_WORDS = 2.5
"""Most words of a value that is not a text, on average."""
OF_SETS = "|;,"
"""What may stand between the labels of a row."""


@dataclass(frozen=True)
class SeenColumn:
    """A column: its name, or its number from 0, and the values that were seen in it."""

    name: Column
    values: tuple[Any, ...]

    @property
    def strings(self) -> list[str]:
        """Its values that are text."""
        return [value for value in self.values if isinstance(value, str)]

    @property
    def counts(self) -> Counter[str]:
        """How often each value occurs."""
        return Counter(map(str, self.values))

    def is_text(self) -> bool:
        """Whether its values are texts: of several words, or all different under a usual name."""
        strings = self.strings
        if not strings or 2 * len(strings) < len(self.values) or all(map(is_number, strings)):
            return False
        if self.separator():
            return False
        words = sum(len(value.split()) for value in strings) / len(strings)
        usual = column_name(str(self.name)) in (NAMES | LANGUAGES) - LABELS
        return 2 * len(self.counts) > len(self.values) and (words > FEW_WORDS or usual)

    def is_image(self) -> bool:
        """Whether its values are encoded images, as Hugging Face datasets keep them in Parquet."""
        return all(isinstance(value, dict) and "bytes" in value for value in self.values)

    def separator(self) -> str:
        """What stands between the labels of a row, where its values are sets of labels; else ''.

        A set's labels are short, stand in several rows each, and are fewer than the sets. Lists of
        names are read whatever the separator is.
        """
        if all(isinstance(value, list) for value in self.values):
            sets = {OF_SETS[0]: self.values}
        elif all(isinstance(value, str) for value in self.values):
            sets = {s: tuple(value.split(s) for value in self.values) for s in OF_SETS}
        else:
            return ""
        return next((s for s, own in sets.items() if _are_sets(own)), "")

    def is_numbers(self) -> bool:
        """Whether its values are numbers, of which there are several."""
        finite = (is_number(v) and math.isfinite(float(v)) for v in map(str, self.values))
        return len(self.counts) > 1 and all(finite)

    def is_label(self) -> bool:
        """Whether its values may be classes: few, most of them repeated, no fractions."""
        counts = self.counts
        whole = all(isinstance(value, str | int) and value != "" for value in self.values)
        fractions = any(is_number(value) and not float(value).is_integer() for value in counts)
        usual = column_name(str(self.name)) in LABELS
        few = 1 < len(counts) <= min(MOST_LABELS, len(self.values) // (1 if usual else 2))
        return whole and not fractions and few and not self.is_text() and not self.separator()


@dataclass(frozen=True)
class SeenTable:
    """The columns of a table, and `delimiter` where it is not that of the file's ending."""

    columns: tuple[SeenColumn, ...]
    delimiter: str | None = None


def look_at_table(path: Path) -> SeenTable:
    """The columns of a file, from its first rows.

    Raises `DataError` where it cannot be read, or has none.
    """
    if is_separated(path):
        return _separated(path)
    if is_json_lines(path):
        rows = [row for _, row in islice(json_rows(path), LOOKED_AT)]
        names = list(dict.fromkeys(name for row in rows for name in dotted(row)))
        values = {name: [_under(row, name) for row in rows] for name in names}
        columns = [SeenColumn(name, tuple(values[name])) for name in names]
        return SeenTable(_some(path, [c for c in columns if not any(map(_is_nested, c.values))]))
    names = list(parquet_names(path))
    wanted = [("column", name) for name in names]
    seen = [
        values for _, values, _, _ in islice(parquet_rows(path, wanted, labelled=True), LOOKED_AT)
    ]
    return SeenTable(_some(path, _columns(names, seen)))


def _are_sets(values: Sequence[Sequence[Any]]) -> bool:
    labels = Counter(str(label).strip() for own in values for label in own if str(label).strip())
    return (
        10 * sum(len(own) > 1 for own in values) > len(values)
        and 1 < len(labels) <= min(MOST_LABELS, labels.total() // 2)
        and max(len(label.split()) for label in labels) <= FEW_WORDS
        and not all(map(is_number, labels))
    )


def _is_nested(value: Any) -> bool:
    """Whether a value of JSON is neither plain nor a list of names."""
    return isinstance(value, dict) or (
        isinstance(value, list) and not all(isinstance(name, str) for name in value)
    )


def _under(row: dict[str, Any], name: str) -> Any:
    try:
        return lookup(row, name)
    except KeyError:
        return None


def _separated(path: Path) -> SeenTable:
    rows, delimiter = _split_rows(path)
    if not rows:
        raise DataError(f"{path}: no row in it")
    if not _is_header(rows):
        return SeenTable(_some(path, _columns(range(len(rows[0])), rows)), delimiter)
    names = [name.strip() for name in rows[0]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}:1: two columns are called {twice[0]!r}; rename one of them")
    return SeenTable(_some(path, _columns(names, rows[1:])), delimiter)


def _split_rows(path: Path) -> tuple[list[list[str]], str | None]:
    """The first rows, and the delimiter where it is not that of the file's ending: another one,
    where that gives no columns or none that can be read, and the other gives each row as many.

    Raises `DataError` where none does.
    """
    fault: DataError | None = None
    own: list[list[str]] = []
    try:
        own = _first_rows(path, None)
    except DataError as error:
        fault = error
    if own and len(own[0]) > 1:
        return own, None
    for delimiter in SEPARATORS:
        try:
            rows = _first_rows(path, delimiter)
        except DataError:
            continue
        widths = {len(row) for row in rows[:50]}
        if len(widths) == 1 and widths != {1}:
            return rows, delimiter
    if fault is not None:
        raise fault
    return own, None


def _first_rows(path: Path, delimiter: str | None) -> list[list[str]]:
    columns = Columns((), None, True, delimiter=delimiter)
    return [row for _, row in islice(splitting(path, columns)[0], LOOKED_AT)]


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row has names: usual ones, or words where other rows have numbers."""
    first = [cell.strip() for cell in rows[0]]
    if not all(first) or any(map(is_number, first)):
        return False
    if any(column_name(cell) in NAMES | LANGUAGES for cell in first):
        return True
    if len(set(first)) < len(first):
        return False
    filled = [[row[i] for row in rows[1:] if i < len(row) and row[i]] for i in range(len(first))]
    return any(values and all(map(is_number, values)) for values in filled) and all(
        WORD.fullmatch(cell.replace(" ", "_")) for cell in first
    )


def _columns(names: Iterable[Column], rows: Sequence[Sequence[Any]]) -> list[SeenColumn]:
    """The columns of the rows that are as long as there are names."""
    complete, named = rows, list(names)
    complete = [row for row in rows if len(row) == len(named)]
    return [SeenColumn(name, tuple(row[i] for row in complete)) for i, name in enumerate(named)]


def _some(path: Path, columns: list[SeenColumn]) -> tuple[SeenColumn, ...]:
    found = [
        column for column in columns if any(value not in (None, "") for value in column.values)
    ]
    if not found:
        raise DataError(f"{path}: no column with values in its first {LOOKED_AT:,} rows")
    return tuple(found)
