"""Metrics as additive statistics: each item has a row of numbers, and a value is a function of their sum over the items.

So a metric over a split does not depend on batches, and its uncertainty, and whether it differs between two models, come from
adding up the same rows in other combinations. A mean is the simplest: (sum, count) and their ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bigmodel_cli.lazy import Tensor, torch

PERCENT = {"accuracy", "error", "top5", "macro_f1", "wer", "cer", "rouge1", "rouge2", "rougeL"}
"""Metrics that people read in percent."""
LOWER_IS_BETTER = {"loss", "wer", "cer"}


def shown(name: str, value: float) -> str:
    """A metric's value for people."""
    return f"{100 * value:.2f} %" if name.removesuffix("_lead") in PERCENT else f"{value:.4f}"


@dataclass(frozen=True)
class Measure:
    """A metric of N items: `statistics` (N, K) float64, dense or sparse, and `value`, (..., K) sums of them -> (...).

    `count` is what it was counted over (items, tokens, words); `signature` says how, for metrics with variants.
    """

    statistics: Tensor
    value: Callable[[Tensor], Tensor]
    count: int
    higher_is_better: bool = True
    signature: str = ""

    def __len__(self) -> int:
        return int(self.statistics.shape[0])

    def total(self) -> float:
        """The value over all items."""
        return float(self.value(self.sums(torch.ones(1, len(self), dtype=torch.float64)))[0])

    def sums(self, weights: Tensor) -> Tensor:
        """weights (R, N) -> (R, K)   the statistics' sums, each item as often as its weight."""
        sparse = self.statistics.is_sparse
        sums: Tensor = torch.sparse.mm(self.statistics.t(), weights.t()).t() if sparse else weights @ self.statistics
        return sums

    def each(self) -> list[float]:
        """The value of every item by itself; NaN where it has none."""
        rows = self.statistics.to_dense() if self.statistics.is_sparse else self.statistics
        values: list[float] = self.value(rows).tolist()
        return values


def mean(sums: Tensor, counts: Tensor, higher_is_better: bool, signature: str = "") -> Measure:
    """The ratio of two sums over the items, sums (N,) and counts (N,)."""
    rows = torch.stack((sums.double(), counts.double()), 1)
    return Measure(rows, ratio, int(counts.sum()), higher_is_better, signature)


def ratio(sums: Tensor) -> Tensor:
    """(..., 2) -> (...)   the first over the second; NaN where that is 0."""
    value: Tensor = sums[..., 0] / torch.where(sums[..., 1] > 0, sums[..., 1], torch.nan)
    return value
