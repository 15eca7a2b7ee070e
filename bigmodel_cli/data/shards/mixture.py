"""Mixtures of sources: which one each place is of, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigmodel_cli.data.base import Split
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.shards.near import InShards
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch

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

    def before(self, place: int) -> list[int]:
        """How many places of each source come before this one."""
        period, within = divmod(place, PERIOD)
        counts = np.bincount(self.source[:within], minlength=len(self.shares))
        return [int(n) for n in period * self.shares + counts]

    def fractions(self) -> list[float]:
        """The part of all places that each source has."""
        return [int(n) / PERIOD for n in self.shares]


class Mixture(Split):
    """Rows of several sources, each as often as its weight says, each in its own epochs.

    Sample n of epoch e is place e * len + n of an endless stream: `Pattern` says of which source it
    is and how many of that source came before it, and the source's own order which row that is.
    """

    near = True

    def __init__(self, sources: Sequence[InShards], pattern: Pattern) -> None:
        self.sources, self.pattern = sources, pattern

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def redrawn(self) -> str | None:
        return "a mixture (data.mix) has other rows in each epoch"

    def order(self, places: Ints, epoch: int, seed: int) -> Ints:
        """As they are: each source has its own order."""
        return places

    def coming(self, place: int, epoch: int, seed: int) -> None:
        for source, count in zip(
            self.sources, self.pattern.before(epoch * len(self) + place), strict=True
        ):
            own, within = divmod(count, len(source))
            source.coming(within, own, seed)

    def found(self, places: Ints, epoch: int, seed: int) -> list[tuple[int, int, Ints, Ints]]:
        """(source, its own epoch, which of the places are its, its rows there) of each source and
        epoch that has some.
        """
        numbers, counts = self.pattern.at(epoch * len(self) + places)
        pieces = []
        for number in np.unique(numbers).tolist():
            own, source = np.flatnonzero(numbers == number), self.sources[number]
            epochs, within = np.divmod(counts[own], len(source))
            for e in np.unique(epochs).tolist():
                chosen = epochs == e
                pieces.append((number, e, own[chosen], source.order(within[chosen], e, seed)))
        return pieces

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The rows in these places of the epoch; what is drawn of them is of their own epochs."""
        batch: dict[str, Tensor] = {}
        for number, own_epoch, own, rows in self.found(samples, epoch, seed):
            found = self.sources[number].tensors(rows, own_epoch, seed, augment)
            for name, values in found.items():
                if name not in batch:
                    batch[name] = values.new_empty((len(samples), *values.shape[1:]))
                batch[name][torch.from_numpy(own)] = values
        return batch
