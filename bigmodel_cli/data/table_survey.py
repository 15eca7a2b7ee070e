"""What one pass over tables finds: how much there is, which characters, and which labels."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bigmodel_cli.data.cache import cache_directory, publish
from bigmodel_cli.data.table_files import Columns, rows_of
from bigmodel_cli.errors import DataError, did_you_mean

FORMAT = 1  # of the cached surveys
MOST_CLASSES = 100_000


@dataclass
class TableSurvey:
    """What one pass over a split's files finds; `labels` have the place where each stands first."""

    digest: str = ""
    rows: int = 0
    characters: int = 0
    symbols: str = ""
    labels: dict[str, str] = field(default_factory=dict)


def survey_table(paths: Sequence[Path], columns: Columns) -> TableSurvey:
    """Read the rows once. The result is kept in the cache by path, size and time of change of the files."""
    stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    key = hashlib.sha256(json.dumps([FORMAT, [str(p) for p in paths], stats, asdict(columns)]).encode()).hexdigest()
    kept = cache_directory("surveys") / f"{key}.json"
    if kept.exists():
        return TableSurvey(**json.loads(kept.read_text(encoding="utf-8")))
    found, sha, symbols = TableSurvey(), hashlib.sha256(), set[str]()
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
    if not found.rows:
        raise DataError(f"{paths[0]}: no row in it")
    found.digest, found.symbols = sha.hexdigest(), "".join(sorted(symbols))
    publish(kept, json.dumps(asdict(found)).encode())
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
