"""How sure a metric is, and whether it differs between two models that saw the same items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.metrics import Measure, ratio

RESAMPLES = 1000
CONFIDENCE = 0.95
CHUNK = 1 << 22
"""Weights of items that are in memory at once."""


@dataclass(frozen=True)
class Estimate:
    """A metric, what it was counted over, and its 95 % interval with the method that gave it."""

    value: float
    count: int
    low: float
    high: float
    method: str
    signature: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """A metric of two models on the same items: second minus first, its 95 % interval, and the p-value of no difference."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def estimate(measure: Measure, sampled: Tensor) -> Estimate:
    """The metric with its interval: exact for a proportion of independent items, else the bootstrap's of `sampled` values."""
    rows = measure.statistics
    if measure.value is ratio and bool((rows[:, 1] == 1).all()) and bool(((rows[:, 0] == 0) | (rows[:, 0] == 1)).all()):
        low, high = exact_interval(round(float(rows[:, 0].sum())), measure.count)
        method = "exact"
    else:
        low, high = quantiles(sampled)
        method = "bootstrap"
    return Estimate(measure.total(), measure.count, low, high, method, measure.signature)


def bootstrap(measures: dict[str, Measure]) -> dict[str, Tensor]:
    """For each metric its values (RESAMPLES,) in resamples of the items, all metrics on the same resamples (Efron 1979)."""
    n = len(next(iter(measures.values())))
    values: dict[str, list[Tensor]] = {name: [] for name in measures}
    for weights in resamples(n):
        for name, measure in measures.items():
            values[name].append(measure.value(measure.sums(weights)))
    return {name: torch.cat(v) for name, v in values.items()}


def resamples(n: int) -> Iterator[Tensor]:
    """(R, n) float64: how often each of n items was drawn, for some of the resamples at a time; always the same."""
    generator = torch.Generator().manual_seed(0)
    size = max(1, CHUNK // max(1, n))
    for first in range(0, RESAMPLES, size):
        chosen = torch.randint(n, (min(size, RESAMPLES - first), n), generator=generator)
        weights = torch.zeros(chosen.shape, dtype=torch.float64)
        yield weights.scatter_add_(1, chosen, torch.ones_like(weights))


def compare(first: Tensor, second: Tensor, values: tuple[float, float]) -> Difference:
    """The difference of two models' values over the same resamples (paired bootstrap; Koehn 2004).

    p is two-sided: how often a resampled difference, moved to a mean of 0, is as large as the one seen (Riezler and Maxwell 2005).
    """
    differences = second - first
    seen = values[1] - values[0]
    low, high = quantiles(differences)
    larger = int(((differences - differences.mean()).abs() >= abs(seen) - 1e-12).sum())
    return Difference(*values, seen, low, high, (larger + 1) / (len(differences) + 1))


def quantiles(values: Tensor) -> tuple[float, float]:
    """The ends of the middle 95 % of some values."""
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.nanquantile(values.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def exact_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a proportion by Clopper and Pearson (1934), by bisection on the binomial tail."""
    alpha = 1 - CONFIDENCE
    low = 0.0 if successes == 0 else _bisect(lambda p: _upper_tail(successes, trials, p) - alpha / 2)
    high = 1.0 if successes == trials else _bisect(lambda p: _upper_tail(successes + 1, trials, p) - (1 - alpha / 2))
    return low, high


def _bisect(rising: Callable[[float], float]) -> float:
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
