"""Metrics as additive statistics: a value is a function of the sum of the items' rows of numbers.

So a metric over a split does not depend on batches, and its uncertainty, and whether it differs
between two models, come from adding up the same rows in other combinations. A mean is the simplest:
(sum, count) and their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from bigmodel_cli.lazy import Tensor, torch

CHUNK = 1 << 22
"""Numbers in memory at once."""
Limits = tuple[float, float]
"""The least and the largest value that a metric can have."""


class MetricInfo(NamedTuple):
    """A metric's description: `signature` is how it is counted; `percent`: shown in percent."""

    higher_is_better: bool = True
    signature: str = ""
    limits: Limits = (0.0, math.inf)
    percent: bool = False


LOSS = MetricInfo(higher_is_better=False)
SHARE = MetricInfo(limits=(0.0, 1.0), percent=True)


SMALL = 5e-4
"""Below it four places show no digit: errors of numbers in a large unit."""
MANY = 1e4
"""From there on one place is enough, and thousands are set apart."""
LARGE = 1e9
"""From there on a number is shown with an exponent: errors of numbers in a small unit."""
LEAST_P = 0.001


def shown(value: float, percent: bool) -> str:
    """A metric's value for people; what is rounded to 0 has no sign."""
    if not math.isfinite(value):
        return "not known"
    if percent:
        return f"{100 * value:z.2f} %"
    if abs(value) >= LARGE:
        return f"{value:.6g}"
    if abs(value) >= MANY:
        return f"{value:,.1f}"
    return f"{value:.3g}" if 0 < abs(value) < SMALL else f"{value:z.4f}"


def shown_difference(value: float, percent: bool) -> str:
    """A difference of two values of a metric, or their deviation; of shares in points of 1 %."""
    if percent and math.isfinite(value):
        return f"{100 * value:z.2f} points"
    return shown(value, percent)


def shown_p(value: float) -> str:
    """A p-value for people; none is 0."""
    return f"{value:.3f}" if value >= LEAST_P else f"< {LEAST_P}"


@dataclass(frozen=True)
class Measure:
    """A metric of N items: `statistics` (N, K) float64, dense or sparse, and `value` of their sums.

    `value` takes sums of the statistics. `count` is what it was counted over (items, tokens,
    words); the others are as in `MetricInfo`. `bounds` is for metrics a part of which may rest on
    very few items: sums (K,) -> the value with that part at its worst, and at its best.

    `pseudo` (N,) are the jackknife's pseudo-values of a metric that ranks the items against one
    another, and so is not a function of sums: its statistics are ones, and only its value over all
    items is known.
    """

    statistics: Tensor
    value: Callable[[Tensor], Tensor]
    count: int
    higher_is_better: bool = True
    signature: str = ""
    limits: Limits = (0.0, math.inf)
    percent: bool = False
    bounds: Callable[[Tensor], Limits] | None = None
    pseudo: Tensor | None = None

    def __len__(self) -> int:
        return int(self.statistics.shape[0])

    def total(self) -> float:
        """The value over all items."""
        return float(self.value(self.sums(torch.ones(1, len(self), dtype=torch.float64)))[0])

    def sums(self, weights: Tensor) -> Tensor:
        """weights (R, N) -> (R, K)   the statistics' sums, each item as often as its weight."""
        return product(weights, self.statistics)

    def each(self) -> list[float]:
        """The value of every item by itself; NaN where it has none."""
        values: list[float] = []
        size = max(1, CHUNK // max(1, self.statistics.shape[1]))
        for first in range(0, len(self), size):
            rows = self.statistics.narrow_copy(0, first, min(size, len(self) - first))
            values += self.value(rows.to_dense()).tolist()
        return values


def product(weights: Tensor, statistics: Tensor) -> Tensor:
    """weights (R, N), statistics (N, K) dense or sparse -> (R, K)."""
    if statistics.is_sparse:
        columns: Tensor = torch.sparse.mm(statistics.t(), weights.t())
        return columns.t()
    return weights @ statistics


def mean(sums: Tensor, counts: Tensor, info: MetricInfo) -> Measure:
    """The ratio of two sums over the items, sums (N,) and counts (N,)."""
    rows = torch.stack((sums.double(), counts.double()), 1)
    return Measure(rows, ratio, int(counts.sum()), *info)


def ratio(sums: Tensor) -> Tensor:
    """(..., 2) -> (...)   the first over the second; NaN where that is 0."""
    return sums[..., 0] / torch.where(sums[..., 1] > 0, sums[..., 1], torch.nan)
