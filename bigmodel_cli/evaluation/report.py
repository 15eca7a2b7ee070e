"""`bigmodel eval`: the task's metrics over a split, with their uncertainty and methods."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.console import say, sentence, table
from bigmodel_cli.data import (
    TOKENIZER,
    TRAINED_ON,
    DataSet,
    check_held_out,
    exposure,
    load_trained_on,
    open_data,
    target_of,
)
from bigmodel_cli.device import keep_few_kernels
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.evaluation.evaluator import derived_measures, estimates, evaluate_split
from bigmodel_cli.evaluation.predictions import rescore, write_predictions
from bigmodel_cli.generation.text import Decoding, longest_text
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.metrics import Measure, ratio, shown
from bigmodel_cli.metrics.intervals import Difference, Estimate, compare
from bigmodel_cli.metrics.labels import confusion, draw_confusion
from bigmodel_cli.metrics.text import LEAD, group_of, need_libraries
from bigmodel_cli.outputs import check_output
from bigmodel_cli.overrides import Change
from bigmodel_cli.pictures import check_picture
from bigmodel_cli.spec import Spec


@dataclass(frozen=True)
class Report:
    """The result of an evaluation; `differences` to a second checkpoint where one was given.

    For generated texts, `generated` has "unfinished": how many had no end within "longest" tokens,
    and "truncated": how many sources were cut.
    """

    source: str
    split: str
    task: str
    precision: str
    metrics: dict[str, Estimate]
    second: str = ""
    differences: dict[str, Difference] = field(default_factory=dict)
    generated: dict[str, int] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Each metric's value under its own name, for `jq .accuracy`,
        and in full under `metrics`.

        Of tagging `precision` is the metric; what it is computed in is `computed_in` alone.
        """
        compared = {
            "compared_with": self.second,
            "differences": {n: d.to_json() for n, d in self.differences.items()},
        }
        values = {name: e.to_json()["value"] for name, e in self.metrics.items()}
        return {
            **values,
            "metrics": {name: e.to_json() for name, e in self.metrics.items()},
            "checkpoint": self.source,
            "split": self.split,
            "task": self.task,
            "precision": values.get("precision", self.precision),
            "computed_in": self.precision,
            **self.generated,
            **self.seen,
            **self.tables,
            **(compared if self.differences else {}),
        }

    def to_text(self) -> str:
        """Tables for people."""
        how = f" on the {self.split} split, computed in {self.precision}" if self.split else ""
        signed = any(e.signature for e in self.metrics.values())
        rows = [
            [
                name,
                *(shown(x, e.percent) for x in (e.value, e.low, e.high)),
                f"{e.count:,}",
                e.method,
            ]
            + ([e.signature] if signed else [])
            for name, e in self.metrics.items()
        ]
        columns = [
            "metric",
            "value",
            "95 % from",
            "to",
            "count",
            "interval",
            *(["how"] if signed else []),
        ]
        text = f"{sentence(f'{self.source}: {self.task}{how}')}\n{table(columns, rows)}"
        for records in filter(None, self.tables.values()):
            cells = [
                [f"{x:.4f}" if isinstance(x, float) else str(x) for x in record.values()]
                for record in records
            ]
            text += "\n\n" + table(list(records[0]), cells)
        if not self.differences:
            return text
        rows = [
            [
                name,
                *(shown(x, percent) for x in (d.first, d.second, d.difference, d.low, d.high)),
                f"{d.p:.3f}",
            ]
            for name, d in self.differences.items()
            for percent in [self.metrics[name].percent]
        ]
        columns = ["metric", "first", "second", "difference", "95 % from", "to", "p"]
        how = "paired over the same items; p by swapping the two models' results"
        return f"{text}\n\n{sentence(f'second: {self.second} ({how})')}\n{table(columns, rows)}"


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


def evaluate_checkpoint(
    path: Path,
    overrides: Sequence[Change],
    split: str | None,
    device: str,
    predictions: Path | None = None,
    other: Path | None = None,
    matrix: Path | None = None,
) -> Report:
    """Score a checkpoint, and `other` on the same items, on one split of its data.

    `overrides` may name other data. The first checkpoint's predictions go to the file
    `predictions`, its confusion matrix to the picture `matrix`.
    """
    if predictions is not None:
        check_output(predictions, "--predictions")
    if matrix is not None:
        check_picture(matrix, "--confusion")
    first = _evaluate(path, overrides, split, device)
    if matrix is not None:
        _draw_matrix(first, matrix)
    if predictions is not None:
        write_predictions(predictions, first.loaded.task.name, first.measures, first.columns)
    loaded, task = first.loaded, first.loaded.task
    report = Report(
        str(loaded.path),
        first.split,
        task.name,
        loaded.precision,
        estimates(task, first.measures),
        generated=_of_texts(first),
        seen=first.seen,
        tables=task.tables(first.columns),
    )
    if other is None:
        return report
    second = _evaluate(
        other, overrides, first.split, device, tell=lambda _: None
    )  # the device was reported
    differences = _differences(first, second)
    return Report(**{**vars(report), "second": str(second.loaded.path), "differences": differences})


def _of_texts(evaluation: Evaluation) -> dict[str, int]:
    """The counts of `Report.generated`."""
    columns = evaluation.columns
    if "unfinished" not in columns:
        return {}
    counts = {name: sum(columns[name]) for name in ("unfinished", "truncated")}
    return {**counts, "longest": longest_text(evaluation.loaded, Decoding())}


def _draw_matrix(evaluation: Evaluation, path: Path) -> None:
    if "label" not in evaluation.columns:
        raise SpecError(
            f"--confusion: task.type: {evaluation.loaded.task.name} has no labels to confuse"
        )
    classes = evaluation.loaded.info.classes
    number = {name: i for i, name in enumerate(classes)}
    labels, predictions = (
        torch.tensor([number[name] for name in evaluation.columns[column]])
        for column in ("label", "prediction")
    )
    draw_confusion(confusion(labels, predictions, len(classes)), classes, path)
    say(f"confusion matrix: {path}")


def rescored(path: Path, metrics: Sequence[str]) -> Report:
    """Score a file of predictions again, without a model."""
    load_torch()
    task, measures = rescore(path, metrics)
    return Report(str(path), "", task.name, "", estimates(task, measures))


def _evaluate(
    path: Path,
    overrides: Sequence[Change],
    split: str | None,
    device: str,
    tell: Callable[[str], None] = say,
) -> Evaluation:
    loaded = load_checkpoint(path, device, overrides, tell=tell)
    spec = loaded.spec
    task, texts = loaded.task, loaded.task.text_metrics
    need_libraries(texts)
    name = _split_name(spec, split)
    data = open_data(spec.data, base=Path(), say=say, assets=loaded.files(), only=name)
    target = target_of(loaded.info)
    if target is not None and target_of(data.info) is None:
        raise SpecError(target.lacking)
    _check_length(loaded, data, name)
    trained = load_trained_on(loaded.assets.get(TRAINED_ON))
    if name == "val" and data.held_out:
        check_held_out(data, task.name, trained, spec.data.test_data, say)
    seen = exposure(data, name, task.name, trained, say)
    if data.split(name).lengths is not None:
        keep_few_kernels()
    judged = evaluate_split(loaded, data.split(name), texts if task.generates else None)
    measures, columns = judged.measures | task.baselines(judged.columns, texts), judged.columns
    if name == "val" and (tuned := task.tuned(columns)):
        changes = " ".join(
            f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in tuned.items()
        )
        tell(f"tuned on this split, for use on others: {changes}")
        seen = {**seen, "tuned": tuned}
    return Evaluation(loaded, name, measures, columns, seen, data.items(name))


def _check_length(loaded: Loaded, data: DataSet, name: str) -> None:
    """Raise `SpecError` where an item is longer than the model's positions (the data checks
    recordings).
    """
    limit, lengths = loaded.model.limit, data.split(name).lengths
    longest = data.info.context if lengths is None else int(lengths.max())
    if longest is not None and longest > limit:
        raise SpecError(
            f"the {name} split has items of {longest:,} tokens, and the model's positions end after"
            f" {limit:,}; set data.context to {limit:,} at most"
        )


def _split_name(spec: Spec, wanted: str | None) -> str:
    """The split to evaluate: the one that is wanted, else test, else val.

    Raises `DataError` or `SpecError`.
    """
    there = spec.data.splits(Path())
    if wanted is not None and wanted not in there:
        raise DataError(f"the data has no {wanted!r} split; it has {', '.join(there)}")
    found = [name for name in (wanted, "test", "val") if name in there]
    if not found:
        raise SpecError(
            "the data has neither a test nor a validation split (data.val_fraction: 0 holds"
            f" nothing out); name test data, for instance --set {spec.data.test_data}, or measure"
            " what it was trained on: --split train"
        )
    return str(found[0])


def _differences(first: Evaluation, second: Evaluation) -> dict[str, Difference]:
    """Every metric that both have, over the same items.

    Raises `SpecError` where the items are not the same.
    """
    differ = [
        c for c in ("source", "reference", "label") if first.columns.get(c) != second.columns.get(c)
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
    ours, theirs = (
        {n: m for n, m in e.measures.items() if n not in apart} for e in (first, second)
    )
    if apart:
        left = [
            *apart,
            *(
                task.derived({n: m.total() for n, m in first.measures.items()})
                if task.derived_from in apart
                else ()
            ),
        ]
        say(f"not compared, since the two tokenizers count other tokens: {', '.join(left)}")
    ranked = [name for name, measure in ours.items() if measure.pseudo is not None]
    if ranked:
        ours = {name: measure for name, measure in ours.items() if name not in ranked}
        say(
            "not compared, since all items are ranked at once, and none can be swapped:"
            f" {', '.join(ranked)}"
        )
    if task.derived_from not in apart:
        ours, theirs = (
            {**measures, **derived_measures(task, measures)} for measures in (ours, theirs)
        )
    differences = {
        name: compare(measure, theirs[name]) for name, measure in ours.items() if name in theirs
    }
    if not differences:
        raise SpecError("--compare: the two checkpoints have no metric that counts the same")
    return differences


def _of_other_units(first: Evaluation, second: Evaluation) -> list[str]:
    """Means over tokens, which cannot be compared where the two tokenizers differ."""
    apart = []
    other = first.loaded.assets.get(TOKENIZER) != second.loaded.assets.get(TOKENIZER)
    for name, measure in first.measures.items():
        rows, others = (
            measure.statistics,
            second.measures[name].statistics if name in second.measures else None,
        )
        if others is None or measure.value is not ratio or others.shape != rows.shape:
            continue
        per_token = not group_of(name.removesuffix(LEAD)) and bool((rows[:, 1] != 1).any())
        if bool((rows[:, 1] != others[:, 1]).any()) or (other and per_token):
            apart.append(name)
    return apart
