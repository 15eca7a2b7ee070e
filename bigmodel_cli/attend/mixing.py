"""Mixers that are not attention: the matrix over positions that they imply, as layers of a look.

The weights are signed and no shares: all figures are parts of the sum of absolute weights. They act
on the values before the mixer's own norm and gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from bigmodel_cli.attend.layers import Wanted, tiled_layer
from bigmodel_cli.attend.look import Layer, Side
from bigmodel_cli.attend.sums import Sums
from bigmodel_cli.attend.tiles import Queries, Tile, Tiled
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.contract import mixing
from bigmodel_cli.parts.mixing import Matrix, MixingCall

NOTE = (
    "mixers that are not attention: weights are those of the matrix that they imply, signed and no"
    " shares, on values before the mixer's norm and gate"
)

EachMixing = Callable[[str, MixingCall], Tensor | None]
"""Is given the name of a part and a call; what it returns replaces the call's output."""


@contextmanager
def watch_mixing(model: Module, each: EachMixing) -> Iterator[None]:
    """Inside, `each` is given every call of a mixer that implies a matrix."""
    found = mixing(model)
    before = {name: part.mixing_watcher for name, part in found.items()}
    try:
        for name, part in found.items():
            part.mixing_watcher = partial(each, name)
        yield
    finally:
        for name, part in found.items():
            part.mixing_watcher = before[name]


def mixing_layer(
    name: str, call: MixingCall, sides: tuple[Side, Side], wanted: Wanted
) -> tuple[Layer, Sums]:
    """What the first row of a call shows, and the sums behind its figures.

    `call` must not have a state of earlier calls, of which the matrix knows nothing.
    """
    matrix = call.matrix()
    layer, sums = tiled_layer(name, "mixing", Mixed(matrix), sides, wanted)
    own = matrix.difference()
    return (layer if own is None else replace(layer, difference=own)), sums


class Mixed(Tiled):
    """The implied matrices of one row, in tiles; nothing of T x T is kept."""

    signed, causal = True, True

    def __init__(self, matrix: Matrix) -> None:
        self.matrix, self.kind = matrix, matrix.kind
        self.heads, self.queries = matrix.heads, matrix.length
        self.keys = self.queries
        self.begun: tuple[Tensor, Any] | None = None

    def of(self, rows: Tensor) -> Queries:
        window = self.matrix.window
        start = 0 if window is None else max(0, int(rows[0]) - window + 1)
        return Queries(rows, rows, start, int(rows[-1]) + 1)

    def seen(self, queries: Queries, keys: slice) -> Tensor | None:
        place = torch.arange(keys.start, keys.stop, device=queries.rows.device)
        back = queries.rows[:, None] - place
        seen = back >= 0
        if self.matrix.window is not None:
            seen &= back < self.matrix.window
        if self.matrix.segments is not None:
            seen &= self.matrix.segments[queries.rows][:, None] == self.matrix.segments[keys]
        return None if bool(seen.all()) else seen

    def tile(self, queries: Queries, heads: slice, keys: slice, seen: Tensor | None) -> Tile:
        if self.begun is None or self.begun[0] is not queries.rows:
            self.begun = queries.rows, self.matrix.begin(queries.rows)
        return Tile(self.matrix.tile(self.begun[1], heads, keys), None)

    def values(self, heads: slice, keys: slice) -> Tensor:
        return self.matrix.values(heads, keys)

    def outputs(self, heads: slice, rows: Tensor) -> Tensor:
        return self.matrix.outputs(heads, rows)
