"""Targets other than one class: numbers, or a set of labels.

How values are read, and kept as an array.

A split keeps its targets as one array of N items: classes (N,) int64, numbers (N, K) float64, sets
(N, labels) bool.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.base import Say
from bigmodel_cli.data.classes import numbers_of
from bigmodel_cli.data.reading import checked_text
from bigmodel_cli.errors import DataError, SpecError

LARGEST = 1e100
"""The largest number, so that sums of squares are finite."""
MOST_CELLS = 1 << 31
"""Items times labels of a split."""
Separator = Annotated[
    Annotated[str, Field(min_length=1, max_length=10)] | None,
    Field(
        description=(
            "labels are sets (task.type: multilabel): what stands between the labels of an item,"
            " such as '|'; a list of labels is read too, and an item may have none"
        ),
    ),
]


def target_name(info: DatasetInfo) -> str | None:
    """The key of the target in a batch; None where there is nothing beside the input."""
    if info.targets:
        return "numbers"
    return None if not info.classes else "labels" if info.label_sets else "label"


def read_number(value: Any, place: str, option: str) -> float:
    """A number from a file.

    Raises `DataError` for a missing value, a non-number, NaN or infinity.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        shown = "null" if value is None else "empty"
        raise DataError(f"{place}: {option}: {shown}; give it a number, or leave the row out")
    try:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float | str | Decimal)
            or "_" in str(value)
        ):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise DataError(
            f"{place}: {option}: {repr(value)[:60]} is not a number; write it as 1234.5 or 1.2e3"
        ) from None
    if not math.isfinite(number):
        raise DataError(
            f"{place}: {option}: {number} is not a finite number; repair the row, or leave it out"
        )
    if abs(number) > LARGEST:
        raise DataError(
            f"{place}: {option}: {number} is larger than {LARGEST:g}; give it in a larger unit"
        )
    return number


def read_label(value: Any, place: str) -> str:
    """A label as the name of a class.

    Raises `DataError` for a missing value, and for what is neither a word nor a whole number.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(
            f"{place}: data.label: {'null' if value is None else 'empty'}; give it a class, or"
            " leave it out"
        )
    if isinstance(value, float) and value.is_integer():
        raise DataError(
            f"{place}: data.label: {value} is a float, which is not a class; write {int(value)}"
        )
    if isinstance(value, list):
        raise DataError(
            f"{place}: data.label: a list; where an item has a set of labels, set"
            " data.label_separator (and task.type: multilabel)"
        )
    if not isinstance(value, str):
        raise DataError(
            f"{place}: data.label: {repr(value)[:60]} is neither a word nor a whole number"
        )
    return checked_text(value, f"{place}: data.label").strip()


def read_set(value: Any, separator: str, place: str, option: str) -> tuple[str, ...]:
    """The labels of an item, each once, in order: from a list, or a text with a separator between
    them.
    """
    given = (
        value.split(separator)
        if isinstance(value, str)
        else value
        if isinstance(value, list)
        else [value]
    )
    names = set()
    for label in given:
        if not isinstance(label, str | int):
            shown = "null" if label is None else repr(label)[:60]
            raise DataError(
                f"{place}: {option}: {shown} is neither a word nor a whole number; for no label"
                " write []"
            )
        if isinstance(label, str) and separator in label:
            raise DataError(
                f"{place}: {option}: {label!r} stands in a list, and has label_separator"
                f" {separator!r} within; give one that no label has"
            )
        name = checked_text(str(label), f"{place}: {option}").strip()
        names.add(name.lower() if isinstance(label, bool) else name)
    return tuple(sorted(names - {""}))


def multi_hot(sets: Sequence[Collection[str]], classes: Sequence[str], option: str) -> Any:
    """(N, C) bool, which classes each item has.

    Raises `DataError` where that is too large.
    """
    if len(sets) * len(classes) > MOST_CELLS:
        raise DataError(
            f"{option}: {len(sets):,} items of {len(classes):,} labels are more than {MOST_CELLS:,}"
            " numbers; leave rare ones out"
        )
    number = {name: index for index, name in enumerate(classes)}
    held = np.zeros((len(sets), len(classes)), bool)
    for row, names in zip(held, sets, strict=True):
        row[[number[name] for name in names]] = True
    return held


def sets_among(held: Any, classes: Sequence[str], known: Sequence[str]) -> Any:
    """(N, C) -> (N, len(known)) sets by the numbers of a checkpoint's labels.

    Raises `SpecError` for a label that it lacks.
    """
    numbers = numbers_of(classes, known, [classes[i] for i in np.flatnonzero(held.any(0)).tolist()])
    mapped = np.zeros((len(held), len(known)), bool)
    mapped[:, numbers[numbers >= 0]] = held[:, numbers >= 0]
    return mapped


def numbers_among(labels: Any, classes: Sequence[str], known: Sequence[str]) -> Any:
    """(N,) labels, or (N, C) sets, by the numbers of a checkpoint's classes.

    Raises `SpecError` for one that it does not know.
    """
    if not classes:
        return labels
    if labels.ndim > 1:
        return sets_among(labels, classes, known)
    return numbers_of(classes, known, [classes[i] for i in np.unique(labels).tolist()])[labels]


def number_facts(
    names: Sequence[str], train: Any, before: DatasetInfo | None, known: bool, say: Say
) -> dict[str, Any]:
    """The DatasetInfo of numbers with these names, (N, K) in the training split.

    Mean and deviation are those of this split; of a checkpoint `before` only where it is `known`,
    used as it is: its targets may then have other names. Raises `SpecError` where their number
    differs.
    """
    if not names:
        return {}
    if before is not None and known:
        if len(before.targets) != len(names):
            raise SpecError(
                f"data.targets: {len(names)} ({', '.join(names)}), and the checkpoint has"
                f" {len(before.targets)} ({', '.join(before.targets) or 'none'}); name as many, in"
                " this order"
            )
        return {
            "targets": before.targets,
            "target_mean": before.target_mean,
            "target_std": before.target_std,
        }
    mean, std = train.mean(0), train.std(0)
    for name, centre, spread in zip(names, mean.tolist(), std.tolist(), strict=True):
        if spread <= 1e-12 * abs(centre):
            say(
                f"warning: data.targets: {name} is {centre:g} in every training item; there is"
                " nothing to learn of it, and its deviation is taken as 1"
            )
    std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    return {
        "targets": tuple(names),
        "target_mean": tuple(mean.tolist()),
        "target_std": tuple(std.tolist()),
    }


def check_kind(data: DatasetInfo, checkpoint: DatasetInfo | None) -> None:
    """Raise `SpecError` where a checkpoint that is used as it is has learnt another kind of target
    than the data has.
    """
    name, known = target_name(data), None if checkpoint is None else target_name(checkpoint)
    if name and known and name != known:
        words = {
            "numbers": "numbers (data.targets)",
            "labels": "sets of labels (data.label_separator)",
            "label": "one label",
        }
        raise SpecError(
            f"the checkpoint has learnt {words[known]} of each item, and the data has {words[name]}"
        )
