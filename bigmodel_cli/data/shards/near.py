"""Samples by number that lie in shards: their order, and what is fetched next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from bigmodel_cli.console import quantity
from bigmodel_cli.data.base import Split
from bigmodel_cli.data.order import Ints, permute_in_blocks
from bigmodel_cli.data.shards.cache import ShardCache
from bigmodel_cli.data.shards.prefetch import Prefetch
from bigmodel_cli.errors import ResourceError

AHEAD = 1 << 28
"""Bytes that are fetched ahead, where the cache holds them; or, where that is more, as many as are
mixed at a time, which are all needed at once.
"""
LOOKS = 8
"""Places of the order, for each shard, that are looked at to find what comes."""
MOST_LOOKS = 1 << 12


class Kept(Protocol):
    """A file that the cache keeps, once it was made."""

    @property
    def key(self) -> str:
        """Its name in the cache."""

    @property
    def kept(self) -> int:
        """The bytes of the cache that it takes; 0 of one that is read in place."""

    @property
    def beside(self) -> int:
        """The bytes that it takes besides, while it is made."""

    def prepare(self, cache: ShardCache) -> None:
        """Have it in the cache, where it needs that."""


class Ahead(Prefetch):
    """Files that are fetched ahead."""

    def __init__(self, shards: Sequence[Kept], cache: ShardCache, room: int) -> None:
        self.shards, self.cache = shards, cache
        super().__init__([shard.kept + shard.beside for shard in shards], room)

    def fetch(self, shard: int) -> None:
        self.shards[shard].prepare(self.cache)

    def keep(self, shard: int) -> None:
        self.cache.keep(self.shards[shard].key)


class InShards(Split):
    """Samples of shards that have `counts` of them (N,).

    Those of `mixed` shards at a time are shuffled together; None where they are read in order.
    """

    near = True

    def __init__(
        self, counts: Ints, shards: Sequence[Kept], cache: ShardCache, mixed: int | None
    ) -> None:
        self.ends: Ints = np.cumsum(counts)
        self.cache, self.mixed = cache, mixed or 0
        self.block = max(1, int(np.median(counts[counts > 0])))
        self.sizes = [shard.kept for shard in shards]
        self.needed = 0
        if any(self.sizes):
            most = sorted(self.sizes)[-(self.mixed + 1) :]
            self.needed = sum(most) + max(shard.beside for shard in shards)
        self.prefetch = Ahead(shards, cache, 0)
        self.looked: tuple[int, int, int, int] | None = None
        self.last = -2

    def allot(self, room: int) -> None:
        """Fetch up to this many bytes ahead of those that are needed."""
        self.prefetch.room = min(room, max(AHEAD, self.needed))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def redrawn(self) -> str | None:
        return None

    def order(self, places: Ints, epoch: int, seed: int) -> Ints:
        """Shards come in a random order, the rows of a few of them mixed."""
        return permute_in_blocks(places, len(self), self.block, max(1, self.mixed), (seed, epoch))

    def coming(self, place: int, epoch: int, seed: int) -> None:
        """Fetch what follows; looked for anew where half of what was found is behind."""
        if not self.prefetch.room:
            return
        if self.looked is not None and self.prefetch.is_told():
            *key, first, renew = self.looked
            if key == [epoch, seed] and first <= place < renew:
                return
        step = max(1, self.block // LOOKS)
        bytes_a_row = max(1, sum(self.sizes)) / len(self)
        rows = (2 * self.needed + 2 * self.prefetch.room) / bytes_a_row
        count = int(min(MOST_LOOKS, rows // step + 1, 2 * len(self) // step + 1))
        self.looked = (epoch, seed, place, place + max(1, count * step // 2))
        later = place + step * np.arange(count)
        found = [self._shards_of(later[later < len(self)], epoch, seed)]
        if later[-1] >= len(self):
            again = (later[later >= len(self)] - len(self)) % len(self)
            found.append(self._shards_of(again, epoch + 1, seed))
        self.prefetch.announce(list(dict.fromkeys(np.concatenate(found).tolist())))

    def _shards_of(self, places: Ints, epoch: int, seed: int) -> Ints:
        return np.searchsorted(self.ends, self.order(places, epoch, seed), "right")

    def shards_of(self, samples: Ints) -> tuple[Ints, Ints]:
        """(B,) -> (B,), (B,)   the shard of each sample, and its number there."""
        numbers = np.searchsorted(self.ends, samples, "right")
        before = np.concatenate((np.zeros(1, np.int64), self.ends))[numbers]
        if self.looked is None and self.prefetch.room:
            self._in_order(int(numbers[0]))
        return numbers, samples - before

    def _in_order(self, shard: int) -> None:
        """Fetch what follows where samples are asked for by number, as evaluation does: where one
        shard came after the other.
        """
        last, self.last = self.last, shard
        announced = self.prefetch.announced
        if shard == last + 1 and shard not in announced[: len(announced) // 2]:
            self.prefetch.announce(range(shard, min(len(self.ends), shard + MOST_LOOKS)))


def allot(splits: Sequence[InShards], cache: ShardCache) -> None:
    """Divide the cache among splits that are read at the same time.

    Raises `ResourceError` where it does not hold the shards that they need at once.
    """
    needed = sum(split.needed for split in splits)
    if needed > cache.limit:
        count = sum(min(len(split.sizes), split.mixed + 1) for split in splits)
        raise ResourceError(
            f"data.cache_bytes: {quantity(cache.limit, 'B')}, and the {count} shards that are"
            f" needed at once have up to {needed:,} bytes; give as many or more, or a smaller"
            " data.mixed_shards"
        )
    for split in splits:
        if split.needed:
            split.allot((cache.limit - needed) * split.needed // needed)


def in_order(shards: Sequence[Kept], cache: ShardCache) -> Callable[[int], None]:
    """What is to be called with the number of a shard that is read now, where all are read one
    after the other: it has those behind it fetched meanwhile.
    """
    ahead = Ahead(shards, cache, 0)
    if any(ahead.sizes):
        ahead.room = min(AHEAD, cache.limit - 2 * max(ahead.sizes))

    def reading(number: int) -> None:
        if ahead.room > 0 and number not in ahead.announced[: len(ahead.announced) // 2]:
            ahead.announce(range(number, min(len(shards), number + MOST_LOOKS)))
        ahead.used(number)

    return reading
