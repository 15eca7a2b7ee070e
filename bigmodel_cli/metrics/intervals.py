"""Confidence intervals of metrics, and tests of differences between two models on the same items.

Intervals hold from five items on, which the percentiles of a bootstrap do not: those cover the
truth in 80 to 90 % of the cases at ten items. `tests/metrics/test_coverage.py` simulates what these
cover.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.metrics import (
    CHUNK,
    Measure,
    product,
    ratio,
    shown,
    shown_difference,
    shown_p,
)
from bigmodel_cli.metrics.distributions import NORMAL, TAIL, exact_interval, t_quantile

LEVEL = 0.05
ENUMERATED = 12
"""Items up to which all 2^n ways to swap two models' items are enumerated."""
SWAPS = 4999
FEWEST_SWAPS = 999
WORK = 200_000_000
"""Items x swaps beyond which fewer swaps are drawn."""


@dataclass(frozen=True)
class Estimate:
    """A metric, its count, and its 95 % interval with the method; NaN for an unknown end."""

    value: float
    count: int
    low: float
    high: float
    method: str
    signature: str = ""
    percent: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain values; what is not a number is null."""
        return _known({name: value for name, value in asdict(self).items() if name != "percent"})


@dataclass(frozen=True)
class Difference:
    """A metric's difference of two models: second minus first, 95 % interval, p-value."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float

    def cells(self, percent: bool) -> list[str]:
        """The cells of a table for people: both values, the difference, its interval, p."""
        values = [shown(x, percent) for x in (self.first, self.second)]
        ends = [shown_difference(x, percent) for x in (self.difference, self.low, self.high)]
        return [*values, *ends, shown_p(self.p)]

    def to_json(self) -> dict[str, Any]:
        """As plain values; what is not a number is null."""
        return _known(asdict(self))


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


def estimate(measure: Measure) -> Estimate:
    """The metric with its interval: exact for a proportion, else Hall's on jackknife pseudo-values.

    Where all items are equal, the interval is what unseen items could change (`unseen`); where a
    part of the metric rests on very few items, that part counts as unknown (`Measure.bounds`).
    """
    rows, value = measure.statistics, measure.total()
    least, most = measure.limits
    if measure.value is ratio and _is_share(rows):
        low, high = exact_interval(round(float(rows[:, 0].sum())), measure.count)
        method = "exact"
    elif constant(pseudo := pseudo_values(measure)) and (
        math.isfinite(most) or value == least or _counted(rows)
    ):
        missed, method = unseen(len(pseudo)), "unseen"
        ceiling = most if math.isfinite(most) else max(least + 1, 2 * value)
        low, high = value - missed * (value - least), value + missed * (ceiling - value)
    else:
        low, high = hall_interval(pseudo, value, degrees_of_freedom(measure))
        method = "jackknife t"
    if measure.bounds is not None:
        bottom, top = measure.bounds(measure.sums(_every(len(measure)))[0])
        low, high = min(low, low + bottom - value), max(high, high + top - value)
    if math.isfinite(low):
        low, high = max(least, low), min(most, high)
    return Estimate(value, measure.count, low, high, method, measure.signature, measure.percent)


def _is_share(rows: Tensor) -> bool:
    """Whether each item counts once, as right or wrong."""
    right = rows[:, 0]
    return bool((rows[:, 1] == 1).all() and ((right == 0) | (right == 1)).all())


def _every(count: int) -> Tensor:
    """(1, N) float64   each item once."""
    return torch.ones(1, count, dtype=torch.float64)


def pseudo_values(measure: Measure, *, every: bool = False) -> Tensor:
    """(N',) float64   n x value - (n - 1) x value without the item (Tukey 1958).

    Items that count for nothing are left out, unless `every` one is asked for: (N,).
    """
    if measure.pseudo is not None:
        return measure.pseudo
    rows = measure.statistics
    return _pseudo(measure, rows if every else rows.index_select(0, _counting(rows)))


def _counting(statistics: Tensor) -> Tensor:
    """(N',) indices of the rows that are not all zero."""
    if statistics.is_sparse:
        y: Tensor = statistics.coalesce().indices()[0].unique()
        return y
    return (statistics != 0).any(1).nonzero()[:, 0]


def _pseudo(measure: Measure, rows: Tensor) -> Tensor:
    count, total = len(rows), product(_every(len(rows)), rows)  # (1, K)
    size = max(1, CHUNK // max(1, rows.shape[1]))
    without = [rows.new_zeros(0).to_dense()] if not count else []
    for first in range(0, count, size):
        piece = rows.narrow_copy(0, first, min(size, count - first)).to_dense()
        without.append(measure.value(total - piece))
    return count * measure.value(total) - (count - 1) * torch.cat(without)


def degrees_of_freedom(measure: Measure) -> int:
    """n - 1, with n the effective number of items of a ratio (Kish 1965): (sum w)^2 / sum w^2."""
    rows = measure.statistics
    if measure.value is not ratio:
        return len(_counting(rows)) - 1
    weights = rows[:, 1]
    if not bool(weights.any()):
        return 1
    return max(1, round(float(weights.sum() ** 2 / weights.square().sum())) - 1)


def hall_interval(pseudo: Tensor, value: float, degrees: int) -> tuple[float, float]:
    """The 95 % interval from pseudo-values: Student's t after Hall's correction of skewness.

    Hall (1992), "On the removal of skewness by transformation", the cubic that can always be
    inverted: with t = (estimate - truth) / s, g(t) = t + a t^2 + a^2 t^3 / 3 + b is nearly
    symmetric, where a = skewness / 3 and b = skewness / (6 n). NaN twice for fewer than two items,
    or where a value without one of them is not defined.
    """
    n = len(pseudo)
    if n < 2 or not bool(pseudo.isfinite().all()):
        return math.nan, math.nan
    centred = pseudo - pseudo.mean()
    variance = float(centred.square().mean())
    if variance == 0:
        return value, value
    skewness = float(centred.pow(3).mean()) / variance**1.5
    deviation = math.sqrt(variance * n / (n - 1))
    a, b = skewness / 3, skewness / (6 * n)

    def back(x: float) -> float:
        return float(x - b if abs(a) < 1e-8 else (math.cbrt(1 + 3 * a * (x - b)) - 1) / a)

    reach = t_quantile(degrees) / math.sqrt(n)
    return value - deviation * back(reach), value - deviation * back(-reach)


def constant(pseudo: Tensor) -> bool:
    """Whether all items are equal, so that their spread is no estimate; False for a single one."""
    if len(pseudo) < 2 or not bool(pseudo.isfinite().all()):
        return False
    return float(pseudo.max() - pseudo.min()) <= 1e-10 * max(1.0, float(pseudo.abs().max()))


def unseen(n: int) -> float:
    """The largest share of other items that n draws miss with probability 2.5 %.

    Clopper and Pearson 1934.
    """
    return 1 - math.exp(math.log(TAIL) / n)


def compare(first: Measure, second: Measure) -> Difference:
    """Whether the second of two models is better on the same items.

    p is two-sided: how often the difference is as large when the two models' results are swapped at
    random, item by item (approximate randomisation; Noreen 1989, Riezler and Maxwell 2005). It is
    exact under the null hypothesis, for every metric and any number of items. The interval is that
    of the items' differences, as in `estimate`, for right and wrong answers Bonett and Price's; it
    excludes 0 only where p is below 5 %, since a few items, most of them equal, tell less than
    their spread.
    """
    values = first.total(), second.total()
    seen = values[1] - values[0]
    own = torch.cat([_counting(measure.statistics) for measure in (first, second)]).unique()
    ours, theirs = (measure.statistics.index_select(0, own) for measure in (first, second))
    pseudo = _pseudo(second, theirs) - _pseudo(first, ours)
    reach = first.limits[1] - first.limits[0]
    if math.isfinite(reach) and _right_or_wrong(pseudo, reach):
        low, high = (end * reach for end in paired_interval(pseudo / reach))
    elif constant(pseudo) and (math.isfinite(reach) or _counted(ours, theirs)):
        missed = unseen(len(pseudo)) * (reach if math.isfinite(reach) else max(1.0, *values))
        low, high = seen - missed, seen + missed
    else:
        degrees = min(degrees_of_freedom(first), degrees_of_freedom(second))
        low, high = hall_interval(pseudo, seen, degrees)
    p = _swapped(first, ours, theirs, seen)
    if p >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(*values, seen, max(-reach, low), min(reach, high), p)


def _right_or_wrong(pseudo: Tensor, reach: float) -> bool:
    """Whether all items' differences are 0 or as large as possible."""
    size = pseudo.abs() / reach
    return len(pseudo) > 1 and bool(((size < 1e-9) | ((size - 1).abs() < 1e-9)).all())


def _counted(*statistics: Tensor) -> bool:
    """Whether these are integers (edits, words), which may be equal by chance, unlike losses."""
    return all(bool((rows == rows.round()).all()) for rows in statistics if not rows.is_sparse)


def paired_interval(differences: Tensor) -> tuple[float, float]:
    """The 95 % interval of the difference of two paired proportions, from (N,) of -1, 0 and 1.

    Bonett and Price (2012), "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data": adds one item that only the first has right and one that only
    the second has.
    """
    n = len(differences) + 2
    middle, either = float(differences.sum()) / n, float(differences.abs().sum() + 2) / n
    reach = NORMAL * math.sqrt((either - middle**2) / n)
    return max(-1.0, middle - reach), min(1.0, middle + reach)


def _swapped(measure: Measure, ours: Tensor, theirs: Tensor, seen: float) -> float:
    """The p-value under swaps of items, from statistics (N, K) of both models."""
    change = theirs - ours
    change = change.index_select(0, _counting(change))
    every = _every(len(ours))
    total = product(every, ours), product(every, theirs)  # (1, K) each
    if math.isnan(seen) or not len(change):
        return math.nan if math.isnan(seen) else 1.0
    larger, tried = 0, 0
    for swaps in swap_patterns(len(change), change.shape[1]):
        moved = product(swaps, change)  # (R, K)
        found = measure.value(total[1] - moved) - measure.value(total[0] + moved)
        larger += int((found.abs() >= abs(seen) - 1e-9 * max(1.0, abs(seen))).sum())
        tried += len(swaps)
    everything = len(change) <= ENUMERATED
    return larger / tried if everything else (larger + 1) / (tried + 1)


def swap_patterns(n: int, width: int = 1) -> Iterator[Tensor]:
    """(R, n) float64 of 0 and 1: which items are swapped; all 2^n ways, or the same random ones.

    `width` is how many numbers follow from each, which bounds how many come at once.
    """
    size = max(1, CHUNK // max(n, width))
    if n <= ENUMERATED:
        yield from (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double().split(size)
        return
    generator = torch.Generator().manual_seed(0)
    wanted = min(SWAPS, max(FEWEST_SWAPS, WORK // n))
    for first in range(0, wanted, size):
        yield torch.randint(
            2, (min(size, wanted - first), n), generator=generator, dtype=torch.int8
        ).double()
