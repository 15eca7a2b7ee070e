"""Which head of one model does what a head of another does: the cheapest assignment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bigmodel_cli.attend.tiles import Tiled
from bigmodel_cli.lazy import Tensor, torch

ROWS = 64
"""Queries that heads are matched by, evenly spread ..."""
WEIGHTS = 1 << 23
"""... fewer where all their weights of all heads would be more than this."""
CHEAPER = 0.5
"""Heads count as moved where their partners diverge less than this part of their namesakes."""
LEAST = 0.01
"""Bits of divergence below which a head is at its place."""


def matched(first: Tiled, second: Tiled) -> tuple[list[int], Tensor]:
    """For each head of the first the head of the second that matches it, and (H, H) divergences.

    A head stays at its own place unless others match clearly better: see `CHEAPER` and `LEAST`.
    """
    count = max(1, min(ROWS, first.queries, WEIGHTS // (first.heads * first.keys)))
    rows = torch.linspace(first.queries - 1, 0, count).round().long().flip(0).unique()
    p, q = _rows_of(first, rows), _rows_of(second, rows)
    costs = torch.stack([divergence(one[None], q).mean(-1) for one in p])  # (H, H)
    found = assignment(costs.tolist())
    moved = [i for i, j in enumerate(found) if i != j]
    before = sum(float(costs[i, i]) for i in moved)
    after = sum(float(costs[i, found[i]]) for i in moved)
    if not moved or before < LEAST * len(moved) or after > CHEAPER * before:
        return list(range(first.heads)), costs
    return found, costs


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """(..., S) shares twice -> (...)   Jensen-Shannon divergence in bits (Lin 1991): 0 to 1."""
    middle = (p + q) / 2
    each = (torch.special.xlogy(p, p) + torch.special.xlogy(q, q)) / 2
    nats: Tensor = each - torch.special.xlogy(middle, middle)
    return nats.sum(-1).clamp(min=0) / math.log(2)


def _rows_of(tiled: Tiled, rows: Tensor) -> Tensor:
    """(H, R, S + 1)   the weights of some queries, and what is beside the keys."""
    queries = tiled.of(rows)
    whole = slice(0, tiled.keys)
    tile = tiled.tile(queries, slice(0, tiled.heads), whole, tiled.seen(queries, whole))
    outside = tiled.outside(rows)
    beside = torch.zeros_like(tile.weights[..., 0]) if outside is None else outside.exp()
    return torch.cat((tile.weights, beside[..., None].to(tile.weights)), -1)


def assignment(costs: Sequence[Sequence[float]]) -> list[int]:
    """For each row of a square matrix its column, so that the sum of costs is least.

    Shortest augmenting paths with potentials (Kuhn 1955; Jonker and Volgenant 1987).
    """
    size = len(costs)
    rows, columns = [0.0] * (size + 1), [0.0] * (size + 1)  # potentials
    owner = [size] * (size + 1)  # column -> its row; the last column holds the row that is placed
    for row in range(size):
        owner[size], last = row, size
        least, before, used = [math.inf] * size, [size] * size, [False] * (size + 1)
        while owner[last] != size:
            used[last], own = True, owner[last]
            nearest, step = size, math.inf
            for column in range(size):
                if used[column]:
                    continue
                cost = costs[own][column] - rows[own] - columns[column]
                if cost < least[column]:
                    least[column], before[column] = cost, last
                if least[column] < step:
                    nearest, step = column, least[column]
            for column in range(size + 1):
                if used[column]:
                    rows[owner[column]] += step
                    columns[column] -= step
                elif column < size:
                    least[column] -= step
            last = nearest
        while last != size:
            owner[last], last = owner[before[last]], before[last]
        owner[size] = size
    found = [0] * size
    for column in range(size):
        found[owner[column]] = column
    return found
