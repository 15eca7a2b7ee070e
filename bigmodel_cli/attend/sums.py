"""Figures of heads as sums and counts over queries, divided once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bigmodel_cli.attend.look import Statistics
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.metrics.distributions import t_quantile

SHARES = {"sink", "own", "previous", "induction", "duplicate", "moved", "uniform"}
"""Figures between 0 and 1."""
PSEUDO = 2
"""Queries of share 0, and as many of share 1, that count in the spread of shares: a few queries may
carry most of one, and a sample without them would be too sure (Agresti and Coull 1998).
"""


@dataclass
class Sums:
    """By name: sums and sums of squares (H) of a figure over queries, and over how many.

    `all` is how many queries there are, of which `looked` were looked at. `columns` (H, S) is the
    weight that each key received, in parts of all of it.
    """

    all: int = 0
    looked: int = 0
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    column: Tensor | None = None
    column_half: Tensor | None = None

    def add(self, name: str, values: Tensor, counted: Tensor | None = None) -> None:
        """Count a figure (H, R); `counted` (R) says of which queries, all when left out."""
        values = values.double()
        if name in SHARES:  # which rounding may lead out of their range
            values = values.clamp(0, 1)
        if counted is not None:
            values = values[:, counted]
        count = torch.tensor(float(values.shape[1]))
        new = values.sum(1).cpu(), values.square().sum(1).cpu(), count
        old = self.found.get(name)
        self.found[name] = (
            new if old is None else (old[0] + new[0], old[1] + new[1], old[2] + new[2])
        )

    def join(self, other: Sums) -> None:
        """Add those of another window of the same text.

        Each query that was looked at stands for as many as its window has to one: a short window,
        most of which was looked at, counts for its length and no more.
        """
        both, whole = self.looked + other.looked, self.all + other.all
        joined: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for sums in (other, self):
            factor = sums.all * both / (sums.looked * whole)
            for name, (total, squares, count) in sums.found.items():
                new = total * factor, squares * factor, count * factor
                old = joined.get(name)
                joined[name] = (
                    new if old is None else (old[0] + new[0], old[1] + new[1], old[2] + new[2])
                )
        share = other.all / whole  # a window of one key has no column: its share is 0
        self.column = _sum(self.column, 1 - share, other.column, share)
        halves = _sum(_square(self.column_half), (1 - share) ** 2,
                      _square(other.column_half), share**2)  # fmt: skip
        self.column_half = None if halves is None else halves.sqrt()
        self.found, self.all, self.looked = joined, whole, both

    def mean(self, name: str) -> Tensor | None:
        """(H)   the mean; NaN where no query has the figure, None where it is not defined."""
        if name not in self.found:
            return None
        total, _, count = self.found[name]
        return (total / count).float()

    def half(self, name: str) -> Tensor:
        """(H)   half the 95 % interval (Student's t) of the mean, of a sample without replacement.

        Equal values do not say that the others are equal too: shares come with `PSEUDO` queries
        more, so that the interval of none is empty.
        """
        total, squares, count = self.found[name]
        if self.looked == self.all:
            return torch.zeros_like(total).float()
        if count < 2:
            return torch.full_like(total, math.nan).float()
        more = PSEUDO if name in SHARES else 0
        total, squares, seen = total + more, squares + more, count + 2 * more
        spread = ((squares - total.square() / seen) / (seen - 1)).clamp(min=0)
        left = 1 - self.looked / self.all
        return (t_quantile(int(count) - 1) * (spread / count * left).sqrt()).float()

    def statistics(self, heads: int) -> Statistics:
        """The figures of so many heads."""
        unknown = torch.full((heads,), math.nan)
        half = {name: self.half(name) for name in self.found} if self.looked < self.all else {}
        if half and self.column_half is not None:
            half["column"] = self.column_half

        def known(name: str) -> Tensor:
            mean = self.mean(name)
            return unknown if mean is None else mean

        return Statistics(
            entropy=known("entropy"),
            sink=known("sink"),
            own=known("own"),
            previous=known("previous"),
            distance=known("distance"),
            induction=known("induction"),
            duplicate=known("duplicate"),
            column=unknown if self.column is None else self.column.float(),
            uniform=known("uniform"),
            moved=self.mean("moved"),
            half=half,
        )


def _sum(one: Tensor | None, factor: float, two: Tensor | None, other: float) -> Tensor | None:
    """One times its factor and two times the other, of those that there are."""
    known = [x * part for x, part in ((one, factor), (two, other)) if x is not None]
    return torch.stack(known).sum(0) if known else None


def _square(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.square()
