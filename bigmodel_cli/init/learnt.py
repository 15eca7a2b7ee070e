"""What is learnt of a table's rows, by what a column holds: a class, a set of labels, a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bigmodel_cli.data.text.table_columns import Column
from bigmodel_cli.data.text.table_header import LABELS, LANGUAGES, column_name
from bigmodel_cli.data.text.table_look import SeenColumn, SeenTable
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.init.draft import Wanted, listed
from bigmodel_cli.yaml_scalars import on_one_line


@dataclass(frozen=True)
class Learnt:
    """One class of a row."""

    column: SeenColumn
    task: ClassVar[str] = "classification"

    @property
    def label(self) -> Column | None:
        """`data.label`."""
        return self.column.name

    @property
    def separator(self) -> str | None:
        """`data.label_separator`."""
        return None

    @property
    def targets(self) -> tuple[Column, ...]:
        """`data.targets`."""
        return ()

    @property
    def options(self) -> dict[str, str]:
        """Lines of the spec's data."""
        given = {"label": self.label, "label_separator": self.separator}
        lines = {name: on_one_line(value) for name, value in given.items() if value is not None}
        return lines | ({"targets": on_one_line(list(self.targets))} if self.targets else {})

    @property
    def usual(self) -> bool:
        """Whether the column is called as labels are."""
        return column_name(str(self.column.name)) in LABELS

    def question(self, labels: int) -> str:
        """What the model answers."""
        return f"Which of {labels} labels has a text?"

    def note(self) -> str:
        """What is said of the choice."""
        counts = self.column.counts
        said = f"label: {self.label!r}, of {len(counts)} classes ({listed(sorted(counts))})"
        if len(counts) > 2 and self.column.is_numbers():
            said += f"; to estimate a number: data.targets: [{self.label}], and no data.label, with"
            said += " task: regression"
        return said


class LearntSet(Learnt):
    """A set of labels of a row."""

    task = "multilabel"

    @property
    def separator(self) -> str | None:
        """`data.label_separator`."""
        return self.column.separator()

    def question(self, labels: int) -> str:
        """What the model answers."""
        return f"Which of {labels} labels has a text, none, one or several?"

    def note(self) -> str:
        """What is said of the choice."""
        lists = isinstance(self.column.values[0], list)
        how = "lists" if lists else f"with {self.separator!r} between them"
        return f"labels: {self.label!r}, sets of labels, {how}"


class LearntNumber(Learnt):
    """A number of a row."""

    task = "regression"

    @property
    def label(self) -> Column | None:
        """`data.label`."""
        return None

    @property
    def targets(self) -> tuple[Column, ...]:
        """`data.targets`."""
        return (self.column.name,)

    def question(self, labels: int) -> str:
        """What the model answers."""
        return f"What is the {self.column.name} of a text, a number?"

    def note(self) -> str:
        """What is said of the choice."""
        numbers = [float(value) for value in map(str, self.column.values)]
        return (
            f"number to estimate: {self.column.name!r}, from {min(numbers):g} to {max(numbers):g};"
            " data.targets takes several, --label '' none"
        )


KINDS = (LearntSet, Learnt, LearntNumber)
"""What may be learnt of a column; the first that its values are counts."""


def kind_of(column: SeenColumn, task: str) -> type[Learnt] | None:
    """What may be learnt of a column's values; only what is the `task`, where that learns of a
    column.
    """
    holds = (column.separator(), column.is_label(), column.is_numbers())
    found = [kind for kind, it_does in zip(KINDS, holds, strict=True) if it_does]
    asked = [kind for kind in KINDS if kind.task == task] or KINDS
    return next((kind for kind in found if kind in asked), None)


def learnt_of(seen: SeenTable, wanted: Wanted) -> tuple[Learnt | None, list[str]]:
    """What is learnt, or None where there is nothing, with what is to be said of the choice."""
    unlabelled = wanted.task and wanted.task not in (k.task for k in KINDS)
    if wanted.label == "" or (wanted.label is None and unlabelled):
        return None, []
    if wanted.label is not None:
        column = named(seen, wanted.label, "--label")
        chosen = (kind_of(column, wanted.task) or Learnt)(column)
        return chosen, [chosen.note()]
    kinds = [
        (kind, c)
        for c in seen.columns
        if str(c.name) not in wanted.text and (kind := kind_of(c, wanted.task))
    ]
    found: list[Any] = [kind(c) for kind, c in kinds]
    numbers = [x for x in found if x.task == LearntNumber.task and _is_target(seen, x)]
    labels = [x for x in found if x.task != LearntNumber.task]
    if not labels and not numbers:
        return None, [note for c in seen.columns if (note := _lacking(c))][:1]
    usual = [x for x in labels or numbers if x.usual]
    first: Learnt = (usual or sorted(labels or numbers, key=lambda x: len(x.column.counts)))[0]
    notes = [first.note()]
    for what, some in (("labels", labels), ("numbers", numbers)):
        if others := [x.column for x in some if x is not first]:
            shown = listed(f"{c.name!r} ({len(c.counts)} values)" for c in others)
            notes.append(
                f"{shown} may hold {what} too: --label {others[0].name} takes it, --label '' none"
            )
    return first, notes


def _lacking(column: SeenColumn) -> str:
    """Why a column that is usually learnt, or would be without its empty values, is not; '' for
    others.
    """
    values = tuple(v for v in column.values if v not in (None, ""))
    usual = column_name(str(column.name)) in LABELS
    missing = len(column.values) - len(values)
    whole = SeenColumn(column.name, values)
    if column.is_text() or not (usual or (missing and not whole.is_text() and kind_of(whole, ""))):
        return ""
    why = (
        f"values are missing in {missing:,} of {len(column.values):,} rows: fill them, or take"
        " these rows out"
        if missing
        else f"it has {len(column.counts):,} different values in {len(values):,} rows"
    )
    return f"{column.name!r} is not taken for labels, since {why}"


def _is_target(seen: SeenTable, numbers: Learnt) -> bool:
    """Whether a column is there to be learnt: whole numbers may be the rows' own, and those beside
    a translation say how good it is.
    """
    languages = [c for c in seen.columns if column_name(str(c.name)) in LANGUAGES]
    fractions = any(not float(value).is_integer() for value in numbers.column.counts)
    return (numbers.usual or fractions) and len(languages) < 2


def named(seen: SeenTable, name: str, option: str) -> SeenColumn:
    """The column of that name or number. Raises `SpecError` for none."""
    by_name: dict[str, SeenColumn] = {str(column.name): column for column in seen.columns}
    if name not in by_name:
        raise SpecError(
            f"{option} {name}: no such column; there are"
            f" {listed(by_name, 10)}{did_you_mean(name, by_name)}"
        )
    return by_name[name]
