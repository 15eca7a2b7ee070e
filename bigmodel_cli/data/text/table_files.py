"""Rows of texts and labels from TSV, CSV, JSONL, Parquet and plain lines, one at a time; every
fault names its line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.console import counted
from bigmodel_cli.data.reading import (
    LONGEST_LINE,
    checked_text,
    dotted,
    is_json_lines,
    json_rows,
    lines,
    lookup,
    plain_name,
)
from bigmodel_cli.data.targets import read_label, read_number, read_set
from bigmodel_cli.data.text.cleaning import clean
from bigmodel_cli.data.text.table_columns import SEPARATORS, Column, Columns
from bigmodel_cli.data.text.table_parquet import parquet_rows
from bigmodel_cli.errors import DataError, did_you_mean

ENDINGS = (
    ".tsv",
    ".csv",
    ".jsonl",
    ".parquet",
    ".txt",
    ".tsv.gz",
    ".csv.gz",
    ".jsonl.gz",
    ".txt.gz",
)


@dataclass(frozen=True)
class Row:
    """One row: its texts, its label where there are labels, its place (file and line), and how many
    columns the file has.

    `labels` is a set, None where labels are not sets, and `numbers` are the targets. `header` has
    the names of the columns where the file's first row does.
    """

    texts: tuple[str, ...]
    label: str | None
    place: str
    width: int = 0
    header: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    numbers: tuple[float, ...] = ()


def is_separated(path: Path) -> bool:
    """Whether a file has rows of columns (or one column) of text, with or without a header."""
    return not is_json_lines(path) and not plain_name(path).endswith(".parquet")


def keeps_quotes(path: Path, columns: Columns) -> bool:
    """Whether quotes are ordinary characters, as in GLUE's .tsv files; pandas reads them as in
    .csv.
    """
    return columns.delimiter is None and plain_name(path).endswith(".tsv")


def opens_quotes(path: Path, columns: Columns) -> bool:
    """Whether values may be in quotes, as in .csv."""
    return is_separated(path) and (
        columns.delimiter is not None or plain_name(path).endswith(".csv")
    )


def read_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a file, by its ending; .gz may follow, and other endings are plain lines of one
    column.

    Raises `DataError` naming file and line for what is not UTF-8, malformed, or without a column, a
    text or a label.
    """
    labelled = columns.label is not None
    if is_separated(path):
        rows = _separated(path, columns)
    elif is_json_lines(path):
        rows = _json_rows(path, columns)
    else:
        rows = parquet_rows(path, columns.wanted, labelled)
    for place, values, width, header in rows:
        texts = tuple(_text(value, place) for value in values[: len(columns.text)])
        if columns.targets:
            yield Row(
                texts,
                None,
                place,
                width,
                header,
                numbers=_numbers(values[len(texts) :], columns, place),
            )
        elif labelled and columns.separator is not None:
            labels = read_set(values[-1], columns.separator, place, "data.label")
            yield Row(texts, None, place, width, header, labels)
        else:
            yield Row(
                texts, read_label(values[-1], place) if labelled else None, place, width, header
            )


def rows_of(paths: Sequence[Path], columns: Columns) -> Iterator[Row]:
    """The rows of several files, one after the other."""
    for path in paths:
        yield from read_rows(path, columns)


def _separated(
    path: Path, columns: Columns
) -> Iterator[tuple[str, list[Any], int, tuple[str, ...]]]:
    """(place, wanted values, columns, names) of rows that all have as many as the first: no
    separator in a text shifts them.
    """
    first: list[str] | None = None
    indices: list[int] = []
    header: tuple[str, ...] = ()
    split, delimiter = splitting(path, columns)
    for number, row in split:
        place = f"{path}:{number}"
        if first is None:
            first = row
            hint = _other_separator(first, delimiter)
            indices = [_index(place, o, c, row, columns.named, hint) for o, c in columns.wanted]
            learnt = indices[len(columns.text) :]
            if len({*learnt} - {*indices[: len(columns.text)]}) < len(learnt):
                raise DataError(
                    f"{place}: a column is given twice, by name and by number; a label or a target"
                    " must not be a column of text"
                )
            if columns.named:
                header = tuple(name.strip() for name in row)
                continue
        if len(row) != len(first):
            hint = _other_separator(first, delimiter)
            if not hint and keeps_quotes(path, columns) and '"' in "".join(row):
                hint = '; where values are in quotes, set data.delimiter: "\\t"'
            raise DataError(
                f"{place}: {_count(row)}, and the first row has {len(first)}; repair the row, or"
                f" take it out{hint}"
            )
        yield place, [row[i] for i in indices], len(first), header


def splitting(path: Path, columns: Columns) -> tuple[Iterator[tuple[int, list[str]]], str]:
    """The (line, columns) of a file's rows, and the separator of columns; "" for lines of one
    column.
    """
    if keeps_quotes(path, columns):
        return _tab_rows(path), "\t"
    if columns.delimiter is None and not plain_name(path).endswith(".csv"):
        return _line_rows(path), ""
    return _quoted_rows(path, columns.delimiter or ","), columns.delimiter or ","


def _other_separator(first: Sequence[str], delimiter: str) -> str:
    """A remedy where rows have one column and contain another separator."""
    if len(first) > 1:
        return ""
    other = next((s for s in SEPARATORS if s != delimiter and s in first[0]), None)
    return (
        ""
        if other is None
        else f'; it has {SEPARATORS[other]}: set data.delimiter: "{_spelled(other)}"'
    )


def _spelled(separator: str) -> str:
    return separator.replace("\t", "\\t")


def _index(
    place: str, option: str, column: Column, first: Sequence[str], named: bool, hint: str
) -> int:
    """The index of a column, by its number or by the names in the first row."""
    if isinstance(column, int):
        if column >= len(first):
            raise DataError(
                f"{place}: {_count(first)}, and {option} is number {column} (from 0)"
                + (hint or "; only .tsv, .csv, .jsonl and .parquet have several")
            )
        return column
    names = [name.strip() for name in first] if named else []
    if column not in names:
        raise DataError(
            f"{place}: {option}: no column {column!r}; it has"
            f" {_listed(names)}{hint or did_you_mean(column, names)}"
        )
    if names.count(column) > 1:
        raise DataError(
            f"{place}: {option}: {names.count(column)} columns are called {column!r}; give its"
            " number"
        )
    return names.index(column)


def _count(row: Sequence[Any]) -> str:
    return counted(len(row), "column")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name:.40}" for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "") if names else "none"


def _tab_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Columns between tabs; quotes are ordinary characters."""
    for number, line in enumerate(lines(path), 1):
        # a row of empty values is not an empty line
        if line.strip(" ") and (line.strip() or "\t" in line):
            yield number, line.split("\t")


def _quoted_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Columns between commas or the like, quoted as in RFC 4180: a quoted value may contain them,
    newlines and doubled quotes.
    """
    if csv.field_size_limit() < LONGEST_LINE:  # of the whole process, so it is never lowered
        csv.field_size_limit(LONGEST_LINE)
    source = (line + "\n" for line in lines(path, inner_returns=True))
    reader = csv.reader(source, strict=True, delimiter=delimiter)
    start = 1
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: not CSV ({error}) in the row that begins in line {start};"
            " is a quote left open?"
        ) from None


def _line_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every line that is not empty is a row of one column."""
    return ((number, [line]) for number, line in enumerate(lines(path), 1) if line.strip())


def _json_rows(
    path: Path, columns: Columns
) -> Iterator[tuple[str, list[Any], int, tuple[str, ...]]]:
    for place, row in json_rows(path):
        values = []
        for option, column in columns.wanted:
            try:
                values.append(lookup(row, str(column)))
            except KeyError:
                names = dotted(row)
                near = did_you_mean(str(column), names)
                raise DataError(
                    f"{place}: {option}: no key {column!r}; it has {_listed(names)}{near}"
                ) from None
        yield place, values, 0, ()


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: data.text: {repr(value)[:60]} is not text")
    return clean(checked_text(value, f"{place}: data.text"))


def _numbers(values: Sequence[Any], columns: Columns, place: str) -> tuple[float, ...]:
    try:
        names = columns.target_names
        return tuple(
            read_number(v, place, f"data.targets ({n})") for v, n in zip(values, names, strict=True)
        )
    except DataError as error:
        if columns.header is None and not columns.named and place.endswith(":1"):
            raise DataError(
                f"{error}; where the first row has names, set data.header: true"
            ) from None
        raise
