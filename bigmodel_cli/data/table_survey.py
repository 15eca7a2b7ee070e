"""What one pass over tables finds: how much there is, which characters, and which labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.hashes import check_unchanged, content_hashes
from bigmodel_cli.data.table_files import Columns, rows_of
from bigmodel_cli.errors import DataError, did_you_mean

FORMAT = 2  # of the cached surveys
MOST_CLASSES = 100_000


@dataclass
class TableSurvey:
    """What one pass over a split's files finds; `labels` have the place where each stands first, `hashes` are the files'."""

    digest: str = ""
    rows: int = 0
    characters: int = 0
    symbols: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    hashes: list[str] = field(default_factory=list)


def survey_table(paths: Sequence[Path], columns: Columns) -> TableSurvey:
    """Read the rows once. The result is kept in the cache by the name and content of the files."""
    hashes = content_hashes(paths)
    description = ["table", FORMAT, [str(p) for p in paths], hashes, asdict(columns)]
    return TableSurvey(**cached_json("surveys", description, lambda: asdict(_read(paths, columns, hashes))))


def _read(paths: Sequence[Path], columns: Columns, hashes: list[str]) -> TableSurvey:
    found, sha, symbols = TableSurvey(hashes=hashes), hashlib.sha256(), set[str]()
    for row in rows_of(paths, columns):
        found.rows += 1
        for text in row.texts if row.label is None else (*row.texts, row.label):
            sha.update(text.encode("utf-8") + b"\xff")  # no byte of UTF-8: the end of a value
        for text in row.texts:
            found.characters += len(text)
            symbols.update(text)
        if row.label is not None and row.label not in found.labels:
            found.labels[row.label] = row.place
            if len(found.labels) > MOST_CLASSES:
                raise DataError(f"{row.place}: more than {MOST_CLASSES:,} labels; is data.label the right column?")
        sha.update(b"\xfe")  # nor is this: the end of a row
    if not found.rows:
        raise DataError(f"{paths[0]}: no row in it")
    found.digest, found.symbols = sha.hexdigest(), "".join(sorted(symbols))
    check_unchanged(paths, hashes)
    return found


def sort_classes(labels: Sequence[str] | dict[str, str]) -> tuple[str, ...]:
    """The labels in the order of the logits: as numbers where all are whole numbers, else by code point."""
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def check_labels(surveys: dict[str, TableSurvey], classes: tuple[str, ...]) -> None:
    """Raise `DataError` for a single class, and for a label that the training split does not have."""
    if len(classes) < 2:
        raise DataError(
            f"data.label: every training row has the label {classes[0]!r}; a classification needs two or more"
        )
    for survey in surveys.values():
        for label, place in survey.labels.items():
            if label not in surveys["train"].labels:
                near = did_you_mean(label, classes)
                raise DataError(
                    f"{place}: data.label: {label!r} is no label of the training split{near}; add rows of it there, or "
                    "take this one out"
                )
