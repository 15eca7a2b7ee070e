"""A model over a whole split: every item's sums and counts, what it answered or wrote, and the metrics that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigmodel_cli.data import Split
from bigmodel_cli.data.order import Ints
from bigmodel_cli.device import autocast
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.metrics import LOWER_IS_BETTER, Measure, mean
from bigmodel_cli.metrics.intervals import Estimate, bootstrap, estimate
from bigmodel_cli.metrics.labels import f1_measure
from bigmodel_cli.metrics.text import text_measures
from bigmodel_cli.modes import evaluating
from bigmodel_cli.tasks import Task
from bigmodel_cli.writing import Decoding, write_after_reading


@dataclass
class Scored:
    """Of every item, in the order of the split: sums and counts (N,) of each metric, and answers by name (see tasks)."""

    scores: dict[str, tuple[Tensor, Tensor]]
    answers: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """A split's metrics as measures, and what belongs to each item by name."""

    measures: dict[str, Measure]
    columns: dict[str, list[Any]]


def score_split(
    model: Module, task: Task, split: Split, batch_size: int, device: torch.device, precision: str
) -> Scored:
    """Score the whole split, items of similar length side by side."""
    if split.resident:
        split.to(device)
    scores: dict[str, list[tuple[Tensor, Tensor]]] = {}
    answers: dict[str, list[Any]] = {}
    batches = similar_batches(split, batch_size)
    with evaluating(model), torch.inference_mode():
        for samples in batches:
            batch = {k: v.to(device) for k, v in split.batch(samples, 0, 0, False).items()}
            with autocast(device, precision):
                answered = getattr(task, "answer", None)
                found, said = answered(model, batch) if answered is not None else (task.score(model, batch), {})
            for name, (sums, counts) in found.items():
                scores.setdefault(name, []).append((sums.cpu(), counts.cpu()))
            for name, values in said.items():
                answers.setdefault(name, []).extend(values)
    back = np.argsort(np.concatenate(batches))
    index = torch.from_numpy(back)
    return Scored(
        {n: (torch.cat([s for s, _ in p])[index], torch.cat([c for _, c in p])[index]) for n, p in scores.items()},
        {name: [values[i] for i in back] for name, values in answers.items()},
    )


def similar_batches(split: Split, batch_size: int) -> list[Ints]:
    """Every sample once, those of similar length side by side, so that little is computed on padding."""
    order = np.arange(len(split)) if split.lengths is None else np.argsort(split.lengths, kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(split), batch_size)]


def judge(loaded: Loaded, split: Split, texts: Sequence[str] | None = None) -> Judged:
    """Score a split; unless `texts` is None the model also writes, and they name what that is judged by (metrics/text.py)."""
    size = loaded.spec.train.validation_rows(loaded.facts.context)
    scored = score_split(loaded.model, loaded.task, split, size, loaded.device, loaded.precision)
    measures, columns = means(scored.scores), dict(scored.answers)
    if "label" in columns:
        measures["macro_f1"] = of_labels(columns, loaded.facts.classes)
    if texts is not None:
        columns = written(loaded, split)
        measures |= text_measures(texts, columns["prediction"], columns["reference"])
    return Judged(measures, columns)


def of_labels(columns: dict[str, list[Any]], classes: Sequence[str]) -> Measure:
    """macro-F1; the columns' numbers become the names of classes."""
    labels, predictions = (torch.tensor(columns[name]) for name in ("label", "prediction"))
    for name in ("label", "prediction"):
        columns[name] = [classes[i] for i in columns[name]]
    columns["probability"] = [round(p, 6) for p in columns["probability"]]
    return f1_measure(labels, predictions, len(classes))


def written(loaded: Loaded, split: Any) -> dict[str, list[Any]]:
    """The texts of every pair of a split, and what the model writes for each source; those of similar length side by side."""
    sources, references = split.texts()
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    predictions = [""] * len(sources)
    with evaluating(loaded.model):
        records = write_after_reading(loaded, (sources[i] for i in order), Decoding())
        for i, record in zip(order, records, strict=True):
            predictions[i] = record["text"]
    return {"source": sources, "reference": references, "prediction": predictions}


def values_of(task: Task, measures: dict[str, Measure]) -> dict[str, float]:
    """Each metric's value, with those derived from them. NaN where nothing was counted."""
    values = {name: measure.total() for name, measure in measures.items()}
    return {**values, **task.derived(values)}


def means(scores: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Measure]:
    """The metrics that are sums over counts, as measures."""
    return {name: mean(sums, counts, name not in LOWER_IS_BETTER) for name, (sums, counts) in scores.items()}


def derived_too(task: Task, measures: dict[str, Measure], sampled: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values in resamples with those of the derived metrics."""
    sources = {name: sampled[name].tolist() for name, measure in measures.items() if is_ratio(measure)}
    rows = [task.derived(dict(zip(sources, values, strict=True))) for values in zip(*sources.values(), strict=True)]
    derived = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    return {**sampled, **derived}


def is_ratio(measure: Measure) -> bool:
    """Whether a metric is a sum over a count, from which others may derive."""
    return measure.statistics.shape[1] == 2


def estimates(
    task: Task, measures: dict[str, Measure], sampled: dict[str, Tensor] | None = None
) -> dict[str, Estimate]:
    """Each metric with its interval, and those derived from them; `sampled` are their values in resamples, where known."""
    sampled = bootstrap(measures) if sampled is None else sampled
    result = {name: estimate(measure, sampled[name]) for name, measure in measures.items()}
    sources = {name: e for name, e in result.items() if is_ratio(measures[name])}
    value, low, high = (
        task.derived({name: getattr(e, end) for name, e in sources.items()}) for end in ("value", "low", "high")
    )
    main = result[task.derived_from]
    for name in value:  # monotonic in the metric that they derive from
        ends = sorted((low[name], high[name]))
        result[name] = Estimate(value[name], main.count, ends[0], ends[1], main.method)
    return result
