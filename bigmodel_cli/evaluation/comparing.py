"""`bigmodel eval --compare`: two checkpoints on the same items, metric by metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.errors import SpecError
from bigmodel_cli.evaluation.evaluator import derived_measures
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.metrics import Measure, ratio
from bigmodel_cli.metrics.intervals import Difference, compare
from bigmodel_cli.metrics.text import LEAD, group_of


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on one split: measures, each item's columns, and how many items it had `seen`.

    `items` (N,) are the hashes of the split's items.
    """

    loaded: Loaded
    split: str
    measures: dict[str, Measure]
    columns: dict[str, list[Any]]
    seen: dict[str, Any]
    items: Any


def differences(first: Evaluation, second: Evaluation) -> dict[str, Difference]:
    """Every metric that both have, over the same items.

    Raises `SpecError` where the items are not the same.
    """
    differ = [
        c
        for c in ("source", "reference", "label")
        if _unnamed(first.columns.get(c)) != _unnamed(second.columns.get(c))
    ]
    sizes = len(next(iter(first.measures.values()))), len(next(iter(second.measures.values())))
    if differ or sizes[0] != sizes[1] or first.items.tolist() != second.items.tolist():
        what = f"their {differ[0]}s differ" if differ else "their content differs"
        what = what if sizes[0] == sizes[1] else f"{sizes[0]:,} and {sizes[1]:,}"
        raise SpecError(
            f"--compare: the two checkpoints were not evaluated on the same items: {what}; name the"
            " same data for both with --set"
        )
    task, other = first.loaded.task, second.loaded.task
    if task.name != other.name:
        raise SpecError(
            f"--compare: the two checkpoints were trained for different tasks: {task.name} and"
            f" {other.name}"
        )
    apart = _of_other_units(first, second)
    ours, theirs = first.measures, second.measures
    if task.derived_from not in apart:
        ours, theirs = ({**m, **derived_measures(task, m)} for m in (ours, theirs))
    else:
        apart += task.derived({n: m.total() for n, m in first.measures.items()})
    if task.loss_unit() != other.loss_unit():
        say("not compared, since the two scale their numbers otherwise: loss")
        ours = {name: measure for name, measure in ours.items() if name != "loss"}
    if apart:
        say(f"not compared, since the two tokenizers count other tokens: {', '.join(apart)}")
    ranked = [name for name, measure in ours.items() if measure.pseudo is not None]
    if ranked:
        say(
            "not compared, since all items are ranked at once, and none can be swapped:"
            f" {', '.join(ranked)}"
        )
    by_class = [
        name
        for name, measure in ours.items()
        if name in theirs and measure.statistics.shape != theirs[name].statistics.shape
    ]
    if by_class:
        say(f"not compared, since the two know other classes: {', '.join(by_class)}")
    found = {
        name: compare(measure, theirs[name])
        for name, measure in ours.items()
        if name in theirs and name not in (*apart, *ranked, *by_class)
    }
    if not found:
        raise SpecError("--compare: the two checkpoints have no metric that counts the same")
    return found


def _unnamed(answers: list[Any] | None) -> list[Any] | None:
    """Answers without the names of numbers, which two checkpoints may call differently."""
    if answers is None:
        return None
    return [list(each.values()) if isinstance(each, dict) else each for each in answers]


def _of_other_units(first: Evaluation, second: Evaluation) -> list[str]:
    """Means over tokens, which cannot be compared where the two tokenizers differ."""
    apart = []
    other = first.loaded.assets.get(TOKENIZER) != second.loaded.assets.get(TOKENIZER)
    for name, measure in first.measures.items():
        if name not in second.measures or measure.value is not ratio:
            continue
        rows, others = measure.statistics, second.measures[name].statistics
        if others.shape != rows.shape:
            continue
        per_token = not group_of(name.removesuffix(LEAD)) and bool((rows[:, 1] != 1).any())
        if bool((rows[:, 1] != others[:, 1]).any()) or (other and per_token):
            apart.append(name)
    return apart
