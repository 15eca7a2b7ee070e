"""`bigmodel eval`: the task's metrics over a split, with their uncertainty and methods."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bigmodel_cli.assemble import reference_of
from bigmodel_cli.console import say, sentence, table
from bigmodel_cli.data import (
    TRAINED_ON,
    DataSet,
    check_held_out,
    exposure,
    input_of,
    load_trained_on,
    open_data,
    target_of,
)
from bigmodel_cli.device import keep_few_kernels
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.evaluation.comparing import Evaluation, differences
from bigmodel_cli.evaluation.evaluator import estimates, evaluate_split
from bigmodel_cli.evaluation.predictions import rescore, write_predictions
from bigmodel_cli.evaluation.shared import SharedClasses
from bigmodel_cli.generation.text import Decoding, longest_text
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.metrics import shown
from bigmodel_cli.metrics.intervals import Difference, Estimate
from bigmodel_cli.metrics.labels import confusion, draw_confusion
from bigmodel_cli.metrics.text import need_libraries
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
        """Each metric's value under its own name, for `jq .accuracy`, and in full under `metrics`.

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
        columns = ["metric", "value", "95 % from", "to", "count", "interval", "how"]
        rows = []
        for name, e in self.metrics.items():
            ends = [shown(x, e.percent) for x in (e.value, e.low, e.high)]
            rows.append([name, *ends, f"{e.count:,}", e.method, e.signature])
        if not signed:
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        text = f"{sentence(f'{self.source}: {self.task}{how}')}\n{table(columns, rows)}"
        for records in filter(None, self.tables.values()):
            cells = [[self._cell(*item) for item in record.items()] for record in records]
            text += "\n\n" + table(list(records[0]), cells)
        if not self.differences:
            return text
        rows = [
            [name, *d.cells(self.metrics[name].percent)] for name, d in self.differences.items()
        ]
        columns = ["metric", "first", "second", "difference", "95 % from", "to", "p"]
        how = "paired over the same items; p by swapping the two models' results"
        return f"{text}\n\n{sentence(f'second: {self.second} ({how})')}\n{table(columns, rows)}"

    def _cell(self, name: str, value: Any) -> str:
        """A figure of a table, printed as the metric of that name is."""
        metric = self.metrics.get(name)
        percent = metric is not None and metric.percent
        return shown(value, percent) if isinstance(value, float) else str(value)


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
    first = evaluate_items(path, overrides, split, device)
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
    # The device was reported.
    second = evaluate_items(other, overrides, first.split, device, tell=lambda _: None)
    name = str(second.loaded.path)
    return replace(report, second=name, differences=differences(first, second))


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


def evaluate_items(
    path: Path,
    overrides: Sequence[Change],
    split: str | None,
    device: str,
    tell: Callable[[str], None] = say,
    note: Callable[[str], None] = say,
    *,
    generate: bool = True,
    shared: SharedClasses | None = None,
) -> Evaluation:
    """A checkpoint on one split, item by item.

    `tell` receives the device and what was tuned, `note` what there is to say about the data.
    Without `generate` nothing is generated, and texts are not scored. With `shared` the items are
    those of its classes.
    """
    loaded = load_checkpoint(path, device, overrides, tell=tell)
    spec = loaded.spec
    if loaded.task.needs_reference:
        loaded.task.reference = reference_of(spec, loaded.info, loaded.device)
    task, texts = loaded.task, loaded.task.text_metrics
    need_libraries(texts)
    name = _split_name(spec, split)
    files = loaded.files() if shared is None else loaded.files(shared.numbered(loaded.info))
    data = open_data(spec.data, base=Path(), say=note, assets=files, only=name)
    target = target_of(loaded.info)
    if target is not None and target_of(data.info) is None:
        raise SpecError(target.lacking)
    _check_length(loaded, data, name)
    trained = load_trained_on(loaded.assets.get(TRAINED_ON))
    if name == "val" and data.held_out:
        check_held_out(data, task.name, trained, spec.data.test_data, note)
    seen = exposure(data, name, task.name, trained, note)
    if data.split(name).lengths is not None:
        keep_few_kernels()
    written = texts if task.generates and generate else None
    items, chosen = data.items(name), data.split(name)
    if shared is not None:
        chosen = some = shared.items(chosen, loaded.info.classes)
        items = items[some.rows]
    judged = evaluate_split(loaded, chosen, written)
    measures, columns = judged.measures | task.baselines(judged.columns, texts), judged.columns
    if name == "val" and (tuned := task.tuned(columns)):
        changes = " ".join(
            f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in tuned.items()
        )
        tell(f"tuned on this split, for use on others: {changes}")
        seen = {**seen, "tuned": tuned}
    return Evaluation(loaded, name, measures, columns, seen, items)


def _check_length(loaded: Loaded, data: DataSet, name: str) -> None:
    """Raise `SpecError` where an item is longer than the model's positions.

    Of recordings the data checks it.
    """
    if input_of(loaded.info).in_files:
        return
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
