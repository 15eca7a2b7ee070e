"""Files of predictions: a line of JSON per item of an evaluation; and scoring them again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.console import strict_json
from bigmodel_cli.data.reading import json_rows
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import torch
from bigmodel_cli.metrics import Measure, mean
from bigmodel_cli.metrics.text import (
    LEAD,
    MEASURES,
    group_of,
    lead_measures,
    need_libraries,
    text_measures,
)
from bigmodel_cli.outputs import write_output
from bigmodel_cli.tasks import TASKS, Task


def write_predictions(
    path: Path, task: str, measures: dict[str, Measure], columns: dict[str, list[Any]]
) -> None:
    """Write an object per item: its index, columns, value of each metric, and counts of means.

    Raises `ResourceError`.
    """
    values = {name: measure.each() for name, measure in measures.items()}
    counts = {
        n: m.statistics[:, 1].tolist() for n, m in measures.items() if m.statistics.shape[1] == 2
    }
    count = len(next(iter(measures.values())))

    def line(i: int) -> bytes:
        record = {
            "index": i,
            "task": task,
            **{name: column[i] for name, column in columns.items()},
            "scores": {name: v[i] for name, v in values.items()},
            "counts": {name: int(c[i]) for name, c in counts.items()},
        }
        return (strict_json(record, ascii_only=False) + "\n").encode("utf-8")

    write_output(path, map(line, range(count)))


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The objects of such a file. Raises `DataError` naming a line that is not one."""
    records = []
    for place, record in json_rows(path):
        if not isinstance(record.get("scores"), dict):
            raise DataError(
                f'{place}: no object with "scores", as `bigmodel eval --predictions` writes them'
            )
        records.append(record)
    if not records:
        raise DataError(f"{path}: empty; there is nothing to score")
    names = {(r.get("task"), *r["scores"]) for r in records}
    if len(names) > 1 or records[0].get("task") not in TASKS:
        raise DataError(
            f"{path}: the lines are not of one evaluation: they differ in their task or in their"
            " metrics"
        )
    return records


def rescore(path: Path, metrics: Sequence[str] = ()) -> tuple[Task, dict[str, Measure]]:
    """(task, metrics) of a file of predictions; texts are scored again, by `metrics` if given."""
    records = read_predictions(path)
    task = TASKS[str(records[0]["task"])].for_predictions().build()
    measures: dict[str, Measure] = {}
    named = records[0]["scores"]
    groups = [
        group
        for group, members in MEASURES.items()
        if group in metrics or (not metrics and members.keys() & named)
    ]
    try:
        if any(name in named for name in task.measured):
            shared = set.intersection(*map(set, records))
            columns = {name: [r[name] for r in records] for name in shared}
            measures |= task.measures(columns) | task.baselines(columns, ())
        for name in [n for n in named if n not in measures and not group_of(n.removesuffix(LEAD))]:
            counts = torch.tensor([float(r["counts"][name]) for r in records], dtype=torch.float64)
            values = torch.tensor(
                [float(r["scores"][name] or 0.0) for r in records], dtype=torch.float64
            )
            measures[name] = mean(values * counts, counts, task.info(name))
        if groups:
            need_libraries(groups)
            references = [_text(r, "reference") for r in records]
            measures |= text_measures(groups, [_text(r, "prediction") for r in records], references)
            if any(name.endswith(LEAD) for name in named):
                measures |= lead_measures(groups, [_text(r, "source") for r in records], references)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a line lacks what its metrics need ({type(error).__name__}: {error})"
        ) from None
    return task, measures


def _text(record: dict[str, Any], name: str) -> str:
    """A text of a record.

    Raises `TypeError` for anything else, such as null, whose name would be compared.
    """
    text = record[name]
    if not isinstance(text, str):
        raise TypeError(f"{name}: {text!r} is not text")
    return text
