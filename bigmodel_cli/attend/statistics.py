"""One pass over the tiles of a layer's weights: figures of heads, maps of blocks, heaviest keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from bigmodel_cli.attend.blocks import Maps
from bigmodel_cli.attend.cores import on_cores
from bigmodel_cli.attend.look import Statistics
from bigmodel_cli.attend.repeats import Cells, Repeats
from bigmodel_cli.attend.sums import Sums
from bigmodel_cli.attend.tiles import AT_ONCE, KEYS, ROWS, Queries, Tile, Tiled, spans
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.metrics.distributions import t_quantile

EVEN = 8
"""Columns of a product come in such numbers, for which it is fastest."""


@dataclass
class Rows:
    """What is summed for a chunk of queries: of all heads, (H, R) each, over the tiles so far."""

    total: Tensor  # of absolute weights
    entropy: Tensor  # - sum of a log a of absolute weights a
    first: Tensor
    own: Tensor
    previous: Tensor
    distance: Tensor
    induction: Tensor
    duplicate: Tensor
    sized: Tensor  # absolute weights times sizes of values
    y: Tensor  # (H, R, E)
    seen: Tensor  # (R)
    repeated: Tensor  # (2, R) whether it sees earlier occurrences of its token, and what follows

    @classmethod
    def zeros(cls, heads: int, rows: int, values: Tensor) -> Rows:
        """Nothing yet, of values (.., E)."""
        total, entropy, first, own, previous, distance, induction, duplicate, sized = (
            values.new_zeros(9, heads, rows)
        )
        y, seen = values.new_zeros(heads, rows, values.shape[-1]), values.new_zeros(rows)
        repeated = values.new_zeros(2, rows, dtype=torch.bool)
        places = (own, previous, distance, induction, duplicate)
        return cls(total, entropy, first, *places, sized, y, seen.float(), repeated)


@dataclass(frozen=True)
class Strip:
    """Some queries and a span of keys: what the tiles of all heads share.

    `away` (R, C) are distances, where queries stand among the keys, `cells` those of repeats.
    """

    queries: Queries
    keys: slice
    chunk: slice  # of the queries that are looked at
    seen: Tensor | None
    away: Tensor | None
    cells: list[Cells | None]
    sums: Rows


class Pass:
    """The figures of one layer.

    `rows` are the queries that are looked at, ascending; all when None. `ids` (S) tell equal tokens
    where queries and keys are of one text; `sizes` (H, S) are lengths of values in the stream.
    `own` says that queries and keys are of one sequence. `resolution` is the most blocks to a side,
    `top` the number of heaviest keys that are kept of each query.
    """

    def __init__(
        self,
        tiled: Tiled,
        *,
        own: bool = True,
        ids: Tensor | None = None,
        sizes: Tensor | None = None,
        rows: Tensor | None = None,
        resolution: int = 128,
        top: int = 0,
    ) -> None:
        self.tiled, self.own = tiled, own
        heads, queries, keys = tiled.heads, tiled.queries, tiled.keys
        self.sampled = rows is not None and len(rows) < queries
        self.rows = torch.arange(queries) if rows is None else rows
        values = tiled.values(slice(0, 1), slice(0, 1))
        self.nothing, device = values[:, :0], values.device
        self.sizes = None if sizes is None else sizes.to(device)
        self.repeats = None if ids is None or not own else Repeats(ids.to(device))
        self.maps = Maps((heads, queries, keys), resolution, tiled.signed, device)
        self.sums = Sums(queries, len(self.rows))
        self.received = torch.zeros(heads, keys, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.received) if self.sampled else None
        self.total = self.received.new_zeros(heads)  # of all weights of these queries
        self.seen = torch.zeros(keys, device=device)
        shape = (heads, len(self.rows), min(top, keys))
        self.top = (
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, device=device),
        )
        self.worst, self.largest = 0.0, 0.0
        several = heads * min(ROWS, queries) * min(KEYS, keys) > AT_ONCE
        with on_cores(values.device, heads, several) as self.cores:
            self._run()

    @property
    def difference(self) -> float:
        """The largest one of weights times values and the output, in parts of the largest one."""
        return self.worst / self.largest if self.largest else self.worst

    def per_key(self) -> Tensor:
        """(H, S)   the mean weight that each key receives of the queries that see it."""
        return (self.received / self.seen).float().cpu()

    def statistics(self) -> Statistics:
        """The figures of the heads."""
        return self.sums.statistics(self.tiled.heads)

    def _run(self) -> None:
        for start in range(0, len(self.rows), ROWS):
            chunk = slice(start, min(start + ROWS, len(self.rows)))
            queries = self.tiled.of(self.rows[chunk])
            sums = Rows.zeros(self.tiled.heads, chunk.stop - start, self.nothing)
            for keys in spans(queries, self.maps.columns):
                seen = self.tiled.seen(queries, keys)
                if seen is None or bool(seen.any()):
                    self._visit(queries, keys, seen, sums, chunk)
            self.cores.finish()
            self._finish(queries, sums)
        self.top = (self.top[0].cpu(), self.top[1].cpu())
        self._columns()

    def _visit(
        self, queries: Queries, keys: slice, seen: Tensor | None, sums: Rows, chunk: slice
    ) -> None:
        """Add a tile of all heads."""
        tiled, count = self.tiled, len(queries.rows)
        sums.seen += keys.stop - keys.start if seen is None else seen.sum(1)
        self.seen[keys] += count if seen is None else seen.sum(0)
        self.maps.count(queries.rows, keys, seen)
        cells: list[Cells | None] = [None, None]
        if self.repeats is not None:
            cells = self.repeats.of(queries, keys, seen, tiled.kind)
        for number, each in enumerate(cells):
            if each is not None:
                sums.repeated[number] |= each.having

        strip = Strip(queries, keys, chunk, seen, self._away(queries, keys), cells, sums)
        self.cores.start(partial(self._add, strip))

    def _away(self, queries: Queries, keys: slice) -> Tensor | None:
        """(R, C)   how far the keys are from the queries, where some are before and some after."""
        places = queries.places
        if not self.own or keys.stop - 1 <= int(places[0]) or keys.start >= int(places[-1]):
            return None
        place = torch.arange(keys.start, keys.stop, device=places.device)
        return (places[:, None] - place).abs().to(self.nothing)

    def _add(self, strip: Strip, group: slice) -> None:
        """Add the tiles of some heads, to what is summed of these heads alone."""
        count, first = group.stop - group.start, group.start
        for own in self.tiled.chunks(count, len(strip.queries.rows), strip.keys):
            self._add_tile(strip, slice(first + own.start, first + own.stop))

    def _add_tile(self, strip: Strip, heads: slice) -> None:
        tiled, sums, keys = self.tiled, strip.sums, strip.keys
        tile = tiled.tile(strip.queries, heads, keys, strip.seen)
        size = tile.weights.abs() if tiled.signed else tile.weights
        self._products(strip, heads, tile, size)
        if tile.bits is None:
            sums.entropy[heads] -= torch.special.xlogy(size, size).sum(-1)
        else:  # which are not needed again
            sums.entropy[heads] -= tile.bits.mul_(size).sum(-1) * math.log(2)
        if keys.start == 0:
            sums.first[heads] += size[:, :, 0]
        if self.own:
            _diagonals(strip.queries, heads, keys, size, sums)
        for each, target in zip(strip.cells, (sums.duplicate, sums.induction), strict=True):
            if each is not None:
                target[heads] += each.sums(size)
        self.received[heads, keys] += size.sum(1)
        if self.squares is not None:
            self.squares[heads, keys] += size.square().sum(1)
        self.maps.add(strip.queries.rows, heads, keys, tile.weights)
        if self.top[0].shape[-1]:
            self._heaviest(heads, keys, strip.chunk, tile.weights, size)

    def _products(self, strip: Strip, heads: slice, tile: Tile, size: Tensor) -> None:
        """What one product of the weights gives: of values, their sizes, distances, and sums."""
        keys, places, sums = strip.keys, strip.queries.places, strip.sums
        values = self.tiled.values(heads, keys)
        ramp = torch.arange(keys.stop - keys.start, device=values.device)
        left, slope, start = keys.stop - 1 <= int(places[0]), 1, keys.start
        if left:  # distances grow to the left from the last key, so that nothing cancels
            ramp, slope, start = ramp.flip(0), -1, keys.stop - 1
        shape, width = (*values.shape[:2], 1), values.shape[-1]
        more = [ramp.to(values).view(1, -1, 1).expand(shape), values.new_ones(shape)]
        if self.sizes is not None:
            more.append(self.sizes[heads, keys, None].to(values))
        more.append(values.new_zeros(*shape[:2], -(width + len(more)) % EVEN))
        if self.tiled.signed:
            sums.y[heads] += tile.weights @ values
            found = size @ torch.cat(more, -1)
        else:
            found = size @ torch.cat((values, *more), -1)
            sums.y[heads] += found[..., :width]
            found = found[..., width:]
        sums.total[heads] += found[..., 1]
        if self.sizes is not None:
            sums.sized[heads] += found[..., 2]
        if strip.away is not None:
            sums.distance[heads] += torch.einsum("hrc,rc->hr", size, strip.away)
        elif self.own:
            away = (start - places) * slope
            sums.distance[heads] += away * found[..., 1] + found[..., 0]

    def _heaviest(
        self, heads: slice, keys: slice, chunk: slice, weights: Tensor, size: Tensor
    ) -> None:
        """Merge a tile's heaviest keys with those so far."""
        index, value = (each[heads, chunk] for each in self.top)
        count = min(index.shape[-1], size.shape[-1])
        places = size.topk(count, -1).indices
        index = torch.cat((index, places + keys.start), -1)
        value = torch.cat((value, weights.gather(-1, places).to(value)), -1)
        best = value.abs().topk(self.top[0].shape[-1], -1).indices
        self.top[0][heads, chunk] = index.gather(-1, best)
        self.top[1][heads, chunk] = value.gather(-1, best)

    def _finish(self, queries: Queries, sums: Rows) -> None:
        """Count the figures of a chunk of queries, all of whose tiles were visited."""
        tiled, there, first = self.tiled, sums.seen > 0, sums.first
        beside, total = tiled.outside(queries.rows), torch.ones_like(sums.total)
        if beside is not None:
            sums.entropy -= beside.exp() * beside
            first = first + beside.exp()
        elif tiled.signed:
            total = sums.total.clamp(min=1e-30)
            sums.entropy = sums.entropy / total + total.log()
        sums.entropy = sums.entropy.clamp(min=0).abs()  # which is at least 0, and not -0
        self.total += total[:, there].sum(1).double()
        places = sums.seen + (beside is not None)
        add = self.sums.add
        add("entropy", sums.entropy, there)
        add("sink", first / total, there)
        add("uniform", sums.entropy / places.clamp(min=2).log(), places > 1)
        if self.own:
            add("own", sums.own / total, there)
            add("previous", sums.previous / total, there & (queries.places > 0))
            add("distance", sums.distance / total, there)
        if self.repeats is not None:
            add("duplicate", sums.duplicate / total, there & sums.repeated[0])
            add("induction", sums.induction / total, there & sums.repeated[1])
        if self.sizes is not None:
            share = sums.first * self.sizes[:, :1] / sums.sized.clamp(min=1e-30)
            add("moved", share, there)
        came = tiled.outputs(slice(0, tiled.heads), queries.rows)[:, there]
        if came.numel():
            self.worst = max(self.worst, float((sums.y[:, there] - came).abs().max()))
            self.largest = max(self.largest, float(came.abs().max()))

    def _columns(self) -> None:
        """The largest share of all weight that one key other than the first receives."""
        if self.tiled.keys < 2:
            return
        shares, places = (self.received / self.total[:, None])[:, 1:].max(1)
        self.sums.column = shares.cpu()
        if self.squares is not None:
            count, whole = self.sums.looked, self.sums.all
            squares = self.squares[:, 1:].gather(1, places[:, None])[:, 0]
            spread = (squares / count - shares.square()).clamp(min=0) / max(1, count - 1)
            half = t_quantile(max(1, count - 1)) * (spread * (1 - count / whole)).sqrt()
            self.sums.column_half = half.float().cpu()


def _diagonals(queries: Queries, heads: slice, keys: slice, size: Tensor, sums: Rows) -> None:
    """The weights on the queries' own positions, and on those before them."""
    if keys.start > int(queries.places[-1]) or keys.stop < int(queries.places[0]):
        return
    for back, target in ((0, sums.own), (1, sums.previous)):
        columns = queries.places - back - keys.start
        rows = ((columns >= 0) & (columns < size.shape[-1])).nonzero()[:, 0]
        target[heads, rows] += size[:, rows, columns[rows]]
