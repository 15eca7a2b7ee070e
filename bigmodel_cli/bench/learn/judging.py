"""The best runs on the validation items, item by item: how much of a difference is theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.bench.learn.ranking import ItemError, Spread
from bigmodel_cli.evaluation.comparing import Evaluation, differences
from bigmodel_cli.evaluation.evaluator import derived_measures
from bigmodel_cli.evaluation.report import evaluate_items
from bigmodel_cli.lazy import torch
from bigmodel_cli.metrics import Measure
from bigmodel_cli.metrics.intervals import pseudo_values

Folders = Mapping[str, Sequence[str]]
"""Of each structure, the folders of its runs, by seed."""


def item_errors(folders: Folders, metric: str, device: str) -> ItemError:
    """Evaluates every run on its validation data.

    Raises `SpecError` where the structures were not judged by the same items.
    """
    values: dict[str, Any] = {}
    first: Evaluation | None = None
    for name, own in folders.items():
        seeds = []
        for number, folder in enumerate(own):
            found = _evaluated(Path(folder), metric, device)
            if first is None:
                first = found
            elif number == 0:
                differences(first, found)  # refuses other items
            seeds.append(pseudo_values(_measure(found, metric), every=True))
        values[name] = torch.stack(seeds).mean(0)  # (N,)

    def error(one: str, other: str) -> Spread:
        apart = values[other] - values[one]
        count = len(apart)
        if count < 2:
            return Spread(math.inf, 1)
        return Spread(float(apart.std()) / math.sqrt(count), count - 1)

    return error


def _measure(evaluation: Evaluation, metric: str) -> Measure:
    measures, task = evaluation.measures, evaluation.loaded.task
    return measures[metric] if metric in measures else derived_measures(task, measures)[metric]


def _evaluated(folder: Path, metric: str, device: str) -> Evaluation:
    """With texts written only where the metric is of texts."""
    found = _at(folder, device, generate=False)
    known = {*found.measures, *derived_measures(found.loaded.task, found.measures)}
    return found if metric in known else _at(folder, device, generate=True)


def _at(folder: Path, device: str, *, generate: bool) -> Evaluation:
    quiet: Callable[[str], None] = _nothing
    return evaluate_items(folder, (), "val", device, quiet, quiet, generate=generate)


def _nothing(text: str) -> None:
    """What there is to say about the data was said in training."""
