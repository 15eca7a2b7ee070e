"""Which source each place of a mixture is of, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigmodel_cli.data.order import Ints
from bigmodel_cli.errors import SpecError

PERIOD = 1 << 14
"""Places after which the pattern is repeated: weights are exact to one in so many."""


class Pattern:
    """A pattern of `PERIOD` places in which each source has its share, spread evenly: of each
    stretch of places a source has its share to within a few (the order of Webster's method, in
    which whoever lags most is next).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        exact = np.array([PERIOD * weight / total for weight in weights])
        shares = np.floor(exact).astype(np.int64)
        for index in np.argsort(shares - exact, kind="stable")[: PERIOD - int(shares.sum())]:
            shares[index] += 1
        if (shares < 1).any():
            raise SpecError(
                f"data.mix: a weight of less than 1 in {PERIOD:,} of all; leave that source out, or"
                " give it more"
            )
        self.shares = shares
        # Place j of a source with n places stands at (j + 1/2) / n of the period.
        source = np.repeat(np.arange(len(shares)), shares)
        ranks = np.concatenate([np.arange(n) for n in shares.tolist()])
        turns = np.lexsort((source, (2 * ranks + 1) / (2 * shares[source])))
        self.source, self.rank = source[turns], ranks[turns]

    def at(self, places: Ints) -> tuple[Ints, Ints]:
        """(B,) -> (B,), (B,)   the source of each place, and how many of its own came before."""
        period, within = np.divmod(places, PERIOD)
        source: Ints = self.source[within]
        return source, period * self.shares[source] + self.rank[within]

    def fractions(self) -> list[float]:
        """The part of all places that each source has."""
        return [int(n) / PERIOD for n in self.shares]
