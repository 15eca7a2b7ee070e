"""Which structure learns better, and whether that is sure.

Every structure has the same seeds, which give all of them the same order of the data: structures
by seeds without repetition, a randomised block design. What seeds change beyond what they change
for all alike (the residual of the two-way table) is pooled over structures, since two or three
seeds of one tell little; where a pair varies more than all do together, its own counts. To it
comes the error of the validation items, paired item by item, and averaged over seeds. All pairs
together are wrong with a probability of 5 % (Bonferroni).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bigmodel_cli.metrics.distributions import t_quantile

WRONG = 0.05
"""The probability that any verdict of a call is false, of structures that learn alike."""
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"


@dataclass(frozen=True)
class Spread:
    """A standard deviation, and what it is known from."""

    deviation: float
    degrees: int


@dataclass(frozen=True)
class Judged:
    """The second structure's quality less the first's, averaged over seeds, with its interval.

    `says` of the second: better, worse or undecided. `seeds` and `items` are the standard errors
    by seeds and by validation items.
    """

    first: str
    second: str
    change: float
    low: float | None
    high: float | None
    seeds: float | None
    items: float | None
    says: str


Values = Mapping[str, Sequence[float]]
"""Of each structure, the quality with each seed, in the same order."""
ItemError = Callable[[str, str], Spread]
"""The standard error by validation items of a pair's mean difference."""


def residual(values: Values) -> Spread | None:
    """What structures and seeds together do not explain; None with one seed or one structure."""
    rows = list(values.values())
    count, seeds = len(rows), len(rows[0]) if rows else 0
    if count < 2 or seeds < 2:
        return None
    whole = statistics.fmean(x for row in rows for x in row)
    of_row = [statistics.fmean(row) for row in rows]
    of_seed = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    squares = math.fsum(
        (x - a - b + whole) ** 2
        for row, a in zip(rows, of_row, strict=True)
        for x, b in zip(row, of_seed, strict=True)
    )
    degrees = (count - 1) * (seeds - 1)
    return Spread(math.sqrt(squares / degrees), degrees)


def within(values: Values) -> Spread | None:
    """What seeds change within structures, pooled; None with one seed."""
    rows = [row for row in values.values() if len(row) > 1]
    degrees = sum(len(row) - 1 for row in rows)
    if not degrees:
        return None
    squares = math.fsum((len(row) - 1) * statistics.variance(row) for row in rows)
    return Spread(math.sqrt(squares / degrees), degrees)


def half_of_mean(values: Values, name: str) -> float | None:
    """Half the 95 % interval of a structure's mean over seeds; None with one seed."""
    spread = within(values)
    if spread is None:
        return None
    return t_quantile(spread.degrees) * spread.deviation / math.sqrt(len(values[name]))


def pairs(values: Values, error: ItemError, higher_is_better: bool) -> list[Judged]:
    """Every pair of structures, in their order."""
    found = list(itertools.combinations(values, 2))
    pooled = residual(values)
    sure = 1 - WRONG / max(1, len(found))
    return [_judged(values, pair, pooled, error(*pair), sure, higher_is_better) for pair in found]


def _judged(
    values: Values,
    pair: tuple[str, str],
    pooled: Spread | None,
    items: Spread,
    sure: float,
    higher_is_better: bool,
) -> Judged:
    first, second = (values[name] for name in pair)
    change = statistics.fmean(second) - statistics.fmean(first)
    if pooled is None:
        return Judged(*pair, change, None, None, None, items.deviation, UNDECIDED)
    own = residual({name: values[name] for name in pair})
    deviation = max(pooled.deviation, own.deviation if own is not None else 0.0)
    seeds = deviation * math.sqrt(2 / len(first))
    half = math.hypot(
        t_quantile(pooled.degrees, sure) * seeds, t_quantile(items.degrees, sure) * items.deviation
    )
    low, high = change - half, change + half
    says = UNDECIDED
    if low > 0 or high < 0:
        says = BETTER if (change > 0) == higher_is_better else WORSE
    return Judged(*pair, change, low, high, seeds, items.deviation, says)
