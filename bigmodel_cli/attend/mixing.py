"""Mixers that are not attention: the matrix over positions that they imply, as layers of a look.

The weights are signed and no shares: all figures are parts of the sum of absolute weights. They act
on the values before the mixer's own norm and gate.
"""

from __future__ import annotations

from typing import Any

from bigmodel_cli.attend.tiles import Queries, Tile, Tiled
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.parts.mixing import Matrix

NOTE = (
    "mixers that are not attention: weights are those of the matrix that they imply, signed and no"
    " shares, on values before the mixer's norm and gate"
)


class Mixed(Tiled):
    """The implied matrices of one row, in tiles; nothing of T x T is kept."""

    signed, causal = True, True

    def __init__(self, matrix: Matrix) -> None:
        self.matrix, self.kind = matrix, matrix.kind
        self.heads, self.queries = matrix.heads, matrix.length
        self.keys = self.queries
        self.device = matrix.values(slice(0, 1), slice(0, 1)).device
        self.begun: tuple[Tensor, Any] | None = None

    def of(self, rows: Tensor) -> Queries:
        rows, window = rows.to(self.device), self.matrix.window
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
        begun = self.begun  # by another head, which may run at the same time
        if begun is None or begun[0] is not queries.rows:
            begun = self.begun = queries.rows, self.matrix.begin(queries.rows)
        return Tile(self.matrix.tile(begun[1], heads, keys), None)

    def values(self, heads: slice, keys: slice) -> Tensor:
        return self.matrix.values(heads, keys)

    def outputs(self, heads: slice, rows: Tensor) -> Tensor:
        return self.matrix.outputs(heads, rows)
