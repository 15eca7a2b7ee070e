"""Samples by number that lie in shards: their order, and what is fetched next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bigmodel_cli.console import quantity
from bigmodel_cli.data.base import Split
from bigmodel_cli.data.order import Ints, permute_in_blocks
from bigmodel_cli.data.shards.cache import ShardCache
from bigmodel_cli.data.shards.prefetch import Prefetch
from bigmodel_cli.errors import ResourceError


class InShards(Split):
    """Samples of shards that have `counts` of them (N,) and take `sizes` bytes of the cache.

    Those of `mixed` shards at a time are shuffled together; None where they are read in order.
    """

    def __init__(
        self,
        counts: Ints,
        sizes: Sequence[int],
        fetch: Callable[[int], object],
        cache: ShardCache,
        mixed: int | None,
    ) -> None:
        self.ends: Ints = np.cumsum(counts)
        self.cache, self.mixed = cache, mixed or 0
        self.block = max(1, int(np.median(counts[counts > 0])))
        self.prefetch = Prefetch(fetch, self._ahead(sizes))

    def _ahead(self, sizes: Sequence[int]) -> int:
        """How many shards may be fetched before they are needed.

        Raises `ResourceError` where the cache does not hold those that are mixed.
        """
        largest = max(sizes)
        if not largest:
            return 0
        room = self.cache.limit // largest
        needed = min(len(sizes), self.mixed + 1)
        if room < needed:
            raise ResourceError(
                f"data.cache_bytes: {quantity(self.cache.limit, 'B')} hold {room} of the largest"
                f" shards, and {needed} are needed at once; give"
                f" {needed * largest:,} or more, or a smaller data.mixed_shards"
            )
        return min(room - needed, self.mixed + 1)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def redrawn(self) -> str | None:
        return None

    def order(self, places: Ints, epoch: int, seed: int) -> Ints:
        """Shards come in a random order, the rows of a few of them mixed."""
        found = self.ordered(places, epoch, seed)
        if self.prefetch.ahead and len(places):
            # also those that are mixed behind the last place: some of each are enough
            last, step = int(places[-1]) + 1, max(1, self.block // 8)
            ends = min(len(self), last + self.block * self.mixed)
            later = self.ordered(np.arange(last, ends, step), epoch, seed)
            self.foresee(np.concatenate((found, later)))
        return found

    def ordered(self, places: Ints, epoch: int, seed: int) -> Ints:
        """The same, without fetching anything."""
        return permute_in_blocks(places, len(self), self.block, max(1, self.mixed), (seed, epoch))

    def foresee(self, samples: Ints) -> None:
        """The rows that will be asked for, in this order."""
        if self.prefetch.ahead:
            shards = np.searchsorted(self.ends, samples, "right")
            _, first = np.unique(shards, return_index=True)
            self.prefetch.announce(shards[np.sort(first)].tolist())
