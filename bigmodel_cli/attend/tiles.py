"""What statistics ask of weights that come in tiles, however they are made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from bigmodel_cli.lazy import Tensor, torch

ROWS, KEYS = 256, 1024
"""Queries and keys of a tile."""
AT_ONCE = 1 << 18
"""Weights at once: 1 MB in fp32, which fits a core's cache."""


@dataclass(frozen=True)
class Queries:
    """Some queries: their numbers (R), ascending, and their places among the keys.

    `start` is the first key that any of them may see, `stop` the one after the last. `q` (M, R, D)
    are their vectors and `lse` (M, R) what is subtracted from their scores, where they have them.
    """

    rows: Tensor
    places: Tensor
    start: int
    stop: int
    q: Tensor | None = None
    lse: Tensor | None = None


@dataclass(frozen=True)
class Tile:
    """Weights (h, R, C), and where they are known their logarithms to the base 2.

    Weights are 0 where nothing is seen.
    """

    weights: Tensor
    bits: Tensor | None


class Tiled:
    """Weights of `heads` x `queries` x `keys`; `signed` ones may be negative and are no shares.

    Query i of T stands at key S - T + i; where `causal` it sees no key after that.
    """

    heads: int
    queries: int
    keys: int
    signed: bool
    causal: bool
    kind: torch.dtype

    @abstractmethod
    def of(self, rows: Tensor) -> Queries:
        """Queries by their numbers, in ascending order, of whatever device."""

    @abstractmethod
    def seen(self, queries: Queries, keys: slice) -> Tensor | None:
        """(R, C)   which of the keys each query sees; None where all."""

    @abstractmethod
    def tile(self, queries: Queries, heads: slice, keys: slice, seen: Tensor | None) -> Tile:
        """The weights of these heads, where `seen` is what the method of that name gave."""

    @abstractmethod
    def values(self, heads: slice, keys: slice) -> Tensor:
        """(h, C, E)   the values of these heads."""

    @abstractmethod
    def outputs(self, heads: slice, rows: Tensor) -> Tensor:
        """(h, R, E)   what came out: weights times values, if the weights are right."""

    def outside(self, rows: Tensor) -> Tensor | None:
        """(H, R)   the logarithm of the weight beside the keys, where there is such a thing."""
        return None

    def chunks(self, heads: int, rows: int, keys: slice) -> Iterator[slice]:
        """The heads, as many at once as a tile has room for."""
        size = max(1, AT_ONCE // max(1, rows * (keys.stop - keys.start)))
        for start in range(0, heads, size):
            yield slice(start, min(start + size, heads))

    def walk(self, places: Tensor | None = None) -> Iterator[tuple[Tensor, slice, slice, Tensor]]:
        """(R) queries, heads, keys, and the tile of their weights (h, R, C): all tiles where a
        query sees a key, of these queries (ascending) or all.
        """
        every = torch.arange(self.queries) if places is None else places
        for rows in every.split(ROWS):
            queries = self.of(rows)
            for keys in spans(queries):
                seen = self.seen(queries, keys)
                for heads in self.chunks(self.heads, len(rows), keys):
                    yield rows, heads, keys, self.tile(queries, heads, keys, seen).weights


def spans(queries: Queries, step: int = 1) -> Iterator[slice]:
    """The keys that some queries see, in pieces that begin at multiples of `step`."""
    size = max(step, KEYS // step * step)
    start = queries.start // step * step
    while start < queries.stop:
        yield slice(start, min(start + size, queries.stop))
        start += size


class Dense(Tiled):
    """Weights (H, T, S) that are in memory, with values (H, S, E) and what came out (H, T, E).

    `signed` ones are those of a mixer that is not attention.
    """

    def __init__(
        self, weights: Tensor, values: Tensor, outputs: Tensor, causal: bool, signed: bool
    ) -> None:
        self.all, self.of_keys, self.came_out = weights, values, outputs
        self.heads, self.queries, self.keys = weights.shape
        self.causal, self.signed, self.kind = causal, signed, weights.dtype

    def of(self, rows: Tensor) -> Queries:
        rows = rows.to(self.all.device)
        places = rows + (self.keys - self.queries)
        stop = min(self.keys, int(places[-1]) + 1) if self.causal else self.keys
        return Queries(rows, places, 0, max(0, stop))

    def seen(self, queries: Queries, keys: slice) -> Tensor | None:
        if not self.causal or keys.stop - 1 <= int(queries.places[0]):
            return None
        place = torch.arange(keys.start, keys.stop, device=queries.places.device)
        return queries.places[:, None] >= place

    def tile(self, queries: Queries, heads: slice, keys: slice, seen: Tensor | None) -> Tile:
        weights = self.all[heads, :, keys][:, queries.rows]
        return Tile(weights if seen is None else weights * seen, None)

    def values(self, heads: slice, keys: slice) -> Tensor:
        return self.of_keys[heads, keys]

    def outputs(self, heads: slice, rows: Tensor) -> Tensor:
        return self.came_out[heads][:, rows]
