"""The result of one pass over tables: size, characters, and labels."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli import progress
from bigmodel_cli.data import reading
from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.hashes import check_unchanged, content_hashes
from bigmodel_cli.data.reading import plain_name
from bigmodel_cli.data.text.table_columns import SEPARATORS, Columns
from bigmodel_cli.data.text.table_files import (
    Row,
    is_separated,
    keeps_quotes,
    opens_quotes,
    read_rows,
)
from bigmodel_cli.data.text.table_header import check_headers
from bigmodel_cli.errors import DataError, did_you_mean

FORMAT = 6  # of the cached surveys
MOST_CLASSES = 100_000


@dataclass
class TableSurvey:
    """The result of one pass over a split's files; `labels` have the place of their first
    occurrence, `counts` their number.

    In sets each label counts. `notes` are reports on the files: what may be meant otherwise than it
    was read. `hashes` are those of the files' content. `headers` are the names of the columns in
    the first row of each file that has them, with the row's place.
    """

    digest: str = ""
    rows: int = 0
    characters: int = 0
    symbols: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    headers: list[tuple[str, list[str]]] = field(default_factory=list)


def survey_table(paths: Sequence[Path], columns: Columns) -> TableSurvey:
    """Read the rows once.

    The result is cached by the name and content of the files.

    Raises `DataError` where there is no row, and for a first row that seems to hold names although
    nothing says so.
    """
    hashes = content_hashes(paths)
    description = [
        "table",
        FORMAT,
        reading.FORMAT,
        [str(p) for p in paths],
        hashes,
        asdict(columns),
    ]

    def read() -> dict[str, Any]:
        with progress.reading("reading the tables", paths):
            return asdict(_read(paths, columns, hashes))

    return TableSurvey(**cached_json("surveys", description, read))


def _read(paths: Sequence[Path], columns: Columns, hashes: list[str]) -> TableSurvey:
    result, sha, symbols, firsts = (
        TableSurvey(hashes=hashes),
        hashlib.sha256(),
        set[str](),
        list[Row](),
    )
    for path in paths:
        before, doubts = result.rows, _Doubts()
        for row in read_rows(path, columns):
            if result.rows == before:
                firsts += [row] if is_separated(path) else []
                result.headers += [(row.place, list(row.header))] if row.header else []
            _add(result, row, sha, symbols)
            doubts.add(row)
        result.notes += doubts.notes(path, columns, result.rows - before)
    if not result.rows:
        raise DataError(f"{paths[0]}: no row in it")
    if columns.header is None and not columns.named:
        check_headers(firsts, result.counts, columns)
    result.digest, result.symbols = sha.hexdigest(), "".join(sorted(symbols))
    check_unchanged(paths, hashes)
    return result


def _add(found: TableSurvey, row: Row, sha: Any, symbols: set[str]) -> None:
    found.rows += 1
    for text in row.texts:
        sha.update(text.encode("utf-8") + b"\xff")  # not a byte of UTF-8: the end of a text
    if row.label is not None:
        # another end, since a tokenizer is fitted on texts alone
        sha.update(row.label.encode("utf-8") + b"\xfd")
    if row.labels is not None:
        sha.update(b"".join(label.encode("utf-8") + b"\xfc" for label in row.labels) + b"\xfb")
    if row.numbers:
        sha.update(repr(row.numbers).encode() + b"\xfa")
    for text in row.texts:
        found.characters += len(text)
        symbols.update(text)
    sha.update(b"\xfe")  # nor is this: the end of a row
    for label in row.labels or () if row.label is None else (row.label,):
        found.counts[label] = found.counts.get(label, 0) + 1
        if label not in found.labels:
            found.labels[label] = row.place
            if len(found.labels) > MOST_CLASSES:
                raise DataError(
                    f"{row.place}: more than {MOST_CLASSES:,} labels; is data.label the right"
                    " column?"
                )


def check_order(surveys: Iterable[TableSurvey], columns: Columns) -> None:
    """Raise `DataError` where a column that is given by number is elsewhere in one of the files, by
    their first rows.
    """
    headers = [header for survey in surveys for header in survey.headers]
    for option, column in columns.wanted:
        if not isinstance(column, int):
            continue
        for place, names in headers[1:]:
            name = headers[0][1][column]
            if names[column] != name and names.count(name) == headers[0][1].count(name) == 1:
                raise DataError(
                    f"{place}: {option}: column {column} of this file is called {names[column]!r},"
                    f" and {name!r} in {headers[0][0].rpartition(':')[0]}; give its name:"
                    f" {option}: {name}"
                )


class _Doubts:
    """Counts what may be meant otherwise: values in quotes, empty texts, lines of one column with
    the same separators.
    """

    def __init__(self) -> None:
        self.quoted = self.quoted_labels = self.empty = self.several = 0
        self.separators: dict[str, int] | None = None  # how many of each every row has

    def add(self, row: Row) -> None:
        """Count a row."""
        self.quoted += any(map(_in_quotes, row.texts))
        self.quoted_labels += row.label is not None and _in_quotes(row.label)
        self.empty += not all(row.texts)
        self.several += len(row.labels or ()) > 1
        if row.width == 1 and self.separators != {}:
            counts = {s: row.texts[0].count(s) for s in SEPARATORS}
            before = counts if self.separators is None else self.separators
            self.separators = {s: n for s, n in counts.items() if n and before.get(s) == n}

    def notes(self, path: Path, columns: Columns, rows: int) -> list[str]:
        """Reports on a file of that many rows."""
        notes = []
        count, what = max((self.quoted, "text"), (self.quoted_labels, "label"))
        if count and keeps_quotes(path, columns):
            notes.append(
                f"{path}: {count:,} of {rows:,} rows have a {what} in quotes, and in .tsv quotes"
                ' are characters like others; data.delimiter: "\\t" reads them as .csv does'
            )
        elif opens_quotes(path, columns) and (2 * self.quoted > rows or self.quoted_labels):
            notes.append(
                f"{path}: {count:,} of {rows:,} rows have a {what} in quotes that are read as its"
                " characters: a quote opens a value right behind the delimiter alone, without a"
                " blank between"
            )
        if plain_name(path).endswith((".json", ".ndjson")):
            notes.append(
                f"warning: {path}: read as lines of one column; objects, one on each line, are read"
                " from .jsonl"
            )
        if columns.separator is not None and not self.several:
            notes.append(
                f"warning: {path}: no row has several labels; is data.label_separator:"
                f" {columns.separator!r} what stands between them?"
            )
        if self.empty:
            notes.append(f"warning: {path}: {self.empty:,} of {rows:,} rows have an empty text")
        for separator, count in (self.separators or {}).items() if rows > 1 else ():
            notes.append(
                f"{path}: read as lines of one column, and each of {rows:,} has {count}"
                f" {SEPARATORS[separator]}; if they stand "
                f'between columns, set data.delimiter: "{separator}"'.replace("\t", "\\t")
            )
        return notes


def _in_quotes(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] == '"'


def alike_labels(labels: Iterable[str]) -> list[str]:
    """Warnings of labels that are different classes though they differ only in case, spelling or
    zeros: 1, 01 and 1.0.
    """
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_essence(label), []).append(label)
    return [
        f"warning: {' and '.join(map(repr, group))} are read as different labels"
        for group in groups.values()
        if len(group) > 1
    ]


def _essence(label: str) -> str:
    plain = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    try:
        return repr(float(plain))
    except ValueError:
        return plain


def sort_classes(labels: Sequence[str] | dict[str, str]) -> tuple[str, ...]:
    """The labels in the order of the logits: as numbers where all are integers, else by code
    point.
    """
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def check_labels(
    surveys: dict[str, TableSurvey], classes: tuple[str, ...], sets: bool = False
) -> None:
    """Raise `DataError` for a single class, or sets without labels, and for a label that the
    training split does not have.
    """
    if sets and not classes:
        raise DataError("data.label: no training row has a label; is it the right column?")
    if len(classes) < 2 and not sets:
        raise DataError(
            f"data.label: every training row has the label {classes[0]!r}; a classification needs"
            " two or more"
        )
    for survey in surveys.values():
        for label, place in survey.labels.items():
            if label not in surveys["train"].labels:
                near = did_you_mean(label, classes)
                raise DataError(
                    f"{place}: data.label: {label!r} is not a label of the training split{near};"
                    " add rows of it there, or take this one out"
                )
