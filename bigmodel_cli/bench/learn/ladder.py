"""Learning rates of a structure: a ladder of factors of two, longer while its end is the best.

Recurrent structures learn in a narrow window of rates (arXiv 2508.19029), so that a rate which all
share ranks them falsely: each has its own, and the width of the window is a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FACTOR = 2.0
FURTHEST = 6
"""Most factors of two away from the spec's rate."""
WITHIN = 0.02
"""A rate is good whose quality is at most this part worse than the best rate's."""


@dataclass(frozen=True)
class Window:
    """The good rates beside the best one.

    An end is `open` where it is the last rate that was tried.
    """

    low: float
    high: float
    open_below: bool
    open_above: bool

    @property
    def width(self) -> float:
        """The factor between its ends; 1 where only one rate is good."""
        return self.high / self.low


@dataclass
class Ladder:
    """The spec's `rate` times powers of two; `found` has the quality of each tried power, None
    where the loss was not finite.
    """

    rate: float
    higher_is_better: bool
    first: int = 3
    found: dict[int, float | None] = field(default_factory=dict)

    def at(self, power: int) -> float:
        """The rate at a power."""
        return self.rate * FACTOR**power

    def due(self) -> list[int]:
        """The powers to try next; none where the best one has neighbours on both sides."""
        start = sorted(range(-(self.first // 2), (self.first + 1) // 2), key=lambda p: (abs(p), p))
        if missing := [power for power in start if power not in self.found]:
            return missing
        if self.first == 1:
            return []
        low, high, best = min(self.found), max(self.found), self.best()
        if best is None or best == low:  # nothing was finite: lower
            return [low - 1] if low > -FURTHEST else []
        return [high + 1] if best == high and high < FURTHEST else []

    def best(self) -> int | None:
        """The power with the best quality; None where no loss was finite."""
        sign = -1 if self.higher_is_better else 1
        known = {power: sign * v for power, v in self.found.items() if v is not None}
        return min(known, key=lambda power: (known[power], abs(power)), default=None)

    def window(self) -> Window | None:
        """The good rates around the best one, without a gap."""
        best = self.best()
        if best is None:
            return None
        low = high = best
        while self._good(low - 1, best):
            low -= 1
        while self._good(high + 1, best):
            high += 1
        below, above = low - 1 not in self.found, high + 1 not in self.found
        return Window(self.at(low), self.at(high), below, above)

    def _good(self, power: int, best: int) -> bool:
        value, top = self.found.get(power), self.found[best]
        if value is None or top is None:
            return False
        worse = top - value if self.higher_is_better else value - top
        return worse <= WITHIN * abs(top)

    def qualities(self) -> Mapping[float, float | None]:
        """The quality at each tried rate, in ascending order."""
        return {self.at(power): self.found[power] for power in sorted(self.found)}
