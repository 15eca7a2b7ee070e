"""Which of two targets is faster, and whether that is sure.

Each target runs in several processes, since two processes of the very same program may differ by a
part of a percent for as long as they live (where their memory lies). All take turns in rounds,
every other round backwards; two rounds together (A B B A) cancel a drift of the machine's speed.
The logarithms of the ratios of blocks' medians have a trimmed mean and an interval (Yuen 1974),
which a burst of other work does not move. There is a verdict where the interval excludes 0, each
pairing of a process of one target with one of the other has the same direction, and the change is
more than processes of one target differ among themselves and more than what nobody cares about; so
that what is the same program is not told apart. The interval is of 99 %, since it is looked at
several times.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bigmodel_cli.bench.result import Block, Verdict
from bigmodel_cli.metrics.distributions import t_quantile

TRIMMED = 0.2
"""The share of pairs of rounds that is left out at each end."""
SURE = 0.99
FEWEST = 6
"""Least pairs of rounds of a verdict."""
TOLERANCE = 0.01
"""A change of the time of a step that does not matter."""

TOLERANCE_APART = 0.02
"""The same where two targets were timed at different times, which says less."""
UNDECIDED = "undecided"
LOOKS = (12, 16, 24, 32, 48, 64, 92)
"""Rounds after which it is looked whether a verdict is there."""

Rounds = Sequence[Sequence[Block]]
"""The blocks of each process of a target, by round."""


@dataclass(frozen=True)
class Mean:
    """A trimmed mean and half its interval."""

    value: float
    half: float

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval."""
        return self.value - self.half, self.value + self.half


def judge(
    first: Rounds, second: Rounds, scale: float = 1.0, tolerance: float = TOLERANCE
) -> Verdict:
    """The verdict on the second target against the first; the fewest rounds of a process count.

    `scale` multiplies the second's seconds: where its steps are of another size.
    """
    blocks = [*first, *second]
    rounds = list(zip(*blocks, strict=False))
    kept = [r for r in rounds if not any(block.rejected for block in r)]
    rejected = len(rounds) - len(kept)
    logs = [[math.log(block.median) for block in r] for r in kept]
    count, of_first = len(logs), len(first)
    if count < 2:
        return Verdict(0.0, None, None, None, UNDECIDED, count, rejected)
    values = [
        mean_of(differences(logs, i, j)).value
        for i in range(of_first)
        for j in range(of_first, len(blocks))
    ]
    floor = max(
        (
            abs(mean_of(differences(logs, i, j)).value)
            for own in (range(of_first), range(of_first, len(blocks)))
            for i, j in itertools.combinations(own, 2)
        ),
        default=0.0,
    )
    shift = math.log(scale)
    values = [value + shift for value in values]
    within = mean_of([x + shift for x in overall(logs, of_first)])
    low, high = min(within.ends[0], *values), max(within.ends[1], *values)
    says = _said(within, values, floor, (low, high), math.log1p(tolerance), count)
    change, low, high, floor = map(math.expm1, (within.value, low, high, floor))
    if not math.isfinite(high):
        return Verdict(change, None, None, floor, says, count, rejected)
    return Verdict(change, low, high, floor, says, count, rejected)


def _said(
    within: Mean,
    pairings: Sequence[float],
    floor: float,
    ends: tuple[float, float],
    tolerance: float,
    rounds: int,
) -> str:
    if rounds < 2 * FEWEST:
        return UNDECIDED
    low, high = within.ends
    if abs(within.value) > max(floor, tolerance):
        if low > 0 and min(pairings) > 0:
            return "slower"
        if high < 0 and max(pairings) < 0:
            return "faster"
    return "same" if -tolerance < ends[0] and ends[1] < tolerance else UNDECIDED


def differences(logs: Sequence[Sequence[float]], i: int, j: int) -> list[float]:
    """Process j's logarithm less process i's, each a mean of two rounds that follow one another."""
    apart = [found[j] - found[i] for found in logs]
    return [(a + b) / 2 for a, b in zip(apart[::2], apart[1::2], strict=False)]


def overall(logs: Sequence[Sequence[float]], of_first: int) -> list[float]:
    """As `differences`, of the mean of each target's processes."""
    means = [(statistics.fmean(r[:of_first]), statistics.fmean(r[of_first:])) for r in logs]
    return differences(means, 0, 1)


def mean_of(values: Sequence[float]) -> Mean:
    """The trimmed mean, and half its interval: Student's t with the winsorised deviation (Yuen
    1974).
    """
    n = len(values)
    cut = int(TRIMMED * n)
    ordered = sorted(values)
    kept = ordered[cut : n - cut]
    mean = statistics.fmean(kept)
    if len(kept) < 2:
        return Mean(mean, math.inf)
    winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
    error = math.sqrt((n - 1) * statistics.variance(winsorised) / (len(kept) * (len(kept) - 1)))
    return Mean(mean, t_quantile(len(kept) - 1, SURE) * error)


def judge_apart(
    first: Rounds, second: Rounds, scale: float = 1.0, tolerance: float = TOLERANCE_APART
) -> Verdict:
    """As `judge`, of targets that did not take turns, on one machine at different times.

    Each block's median is divided by the seconds of the reference work beside it, so that the
    machine's speed on that day cancels where it slows both alike; the interval is Yuen's for two
    samples, with Welch's degrees of freedom.
    """
    logs = [_beside_reference(target) for target in (first, second)]
    kept = [[x for own in target for x in own] for target in logs]
    rejected = sum(len(own) for target in (first, second) for own in target) - sum(map(len, kept))
    count = min(map(len, kept))
    if count < 4:
        return Verdict(0.0, None, None, None, UNDECIDED, count, rejected, apart=True)
    means = [[mean_of(own).value for own in target if own] for target in logs]
    floor = max(max(own) - min(own) for own in means)
    values = [b - a + math.log(scale) for a in means[0] for b in means[1]]
    within = _difference(kept[0], kept[1], math.log(scale))
    low, high = min(within.ends[0], *values), max(within.ends[1], *values)
    says = _said(within, values, floor, (low, high), math.log1p(tolerance), count)
    change, low, high, floor = map(math.expm1, (within.value, low, high, floor))
    return Verdict(change, low, high, floor, says, count, rejected, apart=True)


def _beside_reference(processes: Rounds) -> list[list[float]]:
    """Logarithms of the medians relative to the reference work, of blocks that count."""
    return [
        [math.log(b.median / b.reference) for b in own if not b.rejected and b.reference > 0]
        for own in processes
    ]


def _difference(first: Sequence[float], second: Sequence[float], shift: float) -> Mean:
    """The second trimmed mean less the first, and half its interval."""
    a, b = mean_of(first), mean_of(second)
    parts = [
        ((mean.half / t_quantile(kept - 1, SURE)) ** 2, kept - 1)
        for mean, kept in ((a, kept_of(len(first))), (b, kept_of(len(second))))
    ]
    error = sum(square for square, _ in parts)
    if error == 0:
        return Mean(b.value - a.value + shift, 0.0)
    degrees = error**2 / sum(square**2 / degrees for square, degrees in parts)
    half = t_quantile(max(1, int(degrees)), SURE) * math.sqrt(error)
    return Mean(b.value - a.value + shift, half)


def kept_of(count: int) -> int:
    """How many of so many values the trimmed mean is of."""
    return count - 2 * int(TRIMMED * count)
