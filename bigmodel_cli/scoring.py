"""Metrics of a model over a whole split, each with its count and a 95 % interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bigmodel_cli.data import Split
from bigmodel_cli.data.order import Ints
from bigmodel_cli.device import autocast
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.tasks import Task

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A metric, what it was counted over, and its 95 % interval with the method that gave it."""

    value: float
    count: int
    low: float
    high: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def score_split(
    model: Module, task: Task, split: Split, batch_size: int, device: torch.device, precision: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Every item's sums and counts of each metric, (N,) each, in the order of the split."""
    was_training = model.training
    model.eval()
    if split.resident:
        split.to(device)
    collected: dict[str, list[tuple[Tensor, Tensor]]] = {}
    try:
        with torch.inference_mode():
            for samples in similar_batches(split, batch_size):
                batch = {k: v.to(device) for k, v in split.batch(samples, 0, 0, False).items()}
                with autocast(device, precision):
                    scores = task.score(model, batch)
                for name, (sums, counts) in scores.items():
                    collected.setdefault(name, []).append((sums.cpu(), counts.cpu()))
    finally:
        model.train(was_training)
    back = torch.from_numpy(np.argsort(np.concatenate(similar_batches(split, batch_size))))
    return {
        name: (torch.cat([s for s, _ in p])[back], torch.cat([c for _, c in p])[back]) for name, p in collected.items()
    }


def similar_batches(split: Split, batch_size: int) -> list[Ints]:
    """Every sample once, those of similar length side by side, so that little is computed on padding."""
    order = np.arange(len(split)) if split.lengths is None else np.argsort(split.lengths, kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(split), batch_size)]


def metrics_of(task: Task, scores: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Each metric as the sum over its count, with those derived from them. NaN where nothing was counted."""
    values = {
        name: float(sums.sum()) / int(counts.sum()) if int(counts.sum()) else math.nan
        for name, (sums, counts) in scores.items()
    }
    return {**values, **task.derived(values)}


def estimates(task: Task, scores: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Estimate]:
    """Each metric with its interval: exact for a proportion of independent items, else by the bootstrap over items."""
    result: dict[str, Estimate] = {}
    sampled = _bootstrap(scores)
    for name, (sums, counts) in scores.items():
        total, count = float(sums.sum()), int(counts.sum())
        if bool((counts == 1).all()) and bool(((sums == 0) | (sums == 1)).all()):
            low, high = exact_interval(round(total), count)
            method = "exact"
        else:
            low, high = _quantiles(sampled[name])
            method = "bootstrap"
        result[name] = Estimate(total / count, count, low, high, method)
    lows = task.derived({name: e.low for name, e in result.items()})
    highs = task.derived({name: e.high for name, e in result.items()})
    source = {name: e.value for name, e in result.items()}
    main = result[task.metric]
    for name, value in task.derived(source).items():  # monotonic in the metric that they derive from
        ends = sorted((lows[name], highs[name]))
        result[name] = Estimate(value, main.count, ends[0], ends[1], main.method)
    return result


def exact_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a proportion by Clopper and Pearson (1934), by bisection on the binomial tail."""
    alpha = 1 - CONFIDENCE
    low = 0.0 if successes == 0 else _bisect(lambda p: _upper_tail(successes, trials, p) - alpha / 2)
    high = 1.0 if successes == trials else _bisect(lambda p: _upper_tail(successes + 1, trials, p) - (1 - alpha / 2))
    return low, high


def _bisect(rising: Any) -> float:
    """Where a function that rises over [0, 1] crosses zero."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def _upper_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X binomial with n trials of probability p."""
    x = torch.arange(k, n + 1, dtype=torch.float64)
    logs = (
        math.lgamma(n + 1)
        - torch.lgamma(x + 1)
        - torch.lgamma(n - x + 1)
        + x * math.log(max(p, 1e-300))
        + (n - x) * math.log(max(1 - p, 1e-300))
    )
    return float(logs.exp().sum())


def _bootstrap(scores: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """For each metric its value in 1,000 resamples of the items, all metrics on the same resamples."""
    n = len(next(iter(scores.values()))[0])
    generator = torch.Generator().manual_seed(0)
    values: dict[str, list[Tensor]] = {name: [] for name in scores}
    for _ in range(RESAMPLES):
        chosen = torch.randint(n, (n,), generator=generator)
        for name, (sums, counts) in scores.items():
            values[name].append(sums[chosen].sum() / counts[chosen].sum())
    return {name: torch.stack(v) for name, v in values.items()}


def _quantiles(values: Tensor) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(values.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
