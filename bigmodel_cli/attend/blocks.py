"""Maps of blocks of weights: the largest and the mean of each, filled tile by tile."""

from __future__ import annotations

import math

from bigmodel_cli.attend.look import Blocks
from bigmodel_cli.lazy import F, Tensor, torch

LARGE = 1 << 16
"""Weights of a head above which a map of all of them is kept in half the precision."""


class Maps:
    """Of heads x queries x keys, at most `resolution` blocks to a side; 0: none are made.

    They are filled on `device`, a CPU's memory when None.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        resolution: int,
        signed: bool,
        device: torch.device | None = None,
    ) -> None:
        heads, queries, keys = size
        self.signed, self.wanted, self.rows, self.columns = signed, resolution > 0, 1, 1
        if not self.wanted:
            return
        self.rows, self.columns = -(-queries // resolution), -(-keys // resolution)
        self.whole = self.rows == self.columns == 1
        shape = (heads, -(-queries // self.rows), -(-keys // self.columns))
        half = self.whole and queries * keys > LARGE
        kind = torch.float16 if half else torch.float32
        self.most = torch.zeros(shape, dtype=kind, device=device)
        self.least = torch.zeros_like(self.most) if signed and not self.whole else self.most
        self.sums = self.most if self.whole else torch.zeros_like(self.most)
        self.counts = torch.zeros(shape[1:], device=device)

    def count(self, rows: Tensor, keys: slice, seen: Tensor | None) -> None:
        """Count the cells of a tile that are seen: `seen` (R, C), all when None."""
        if not self.wanted:
            return
        cells = self.counts.new_ones(1, keys.stop - keys.start) if seen is None else seen
        where = rows.to(self.counts.device) // self.rows
        counts = self._folded(cells.to(self.counts)).sum(-1).expand(len(rows), -1)
        self._own(self.counts, keys).index_add_(0, where, counts)

    def add(self, rows: Tensor, heads: slice, keys: slice, weights: Tensor) -> None:
        """Add a tile (h, R, C)."""
        if not self.wanted:
            return
        rows, weights = rows.to(self.most.device), weights.to(self.most.device)
        if self.whole:
            self.most[heads, :, keys][:, rows] = weights.to(self.most.dtype)
            return
        cells, where = self._folded(weights), rows // self.rows
        first, last = int(where[0]), int(where[-1]) + 1
        where = where - first
        self._reduced(self.most[heads, first:last], keys, where, cells.amax(-1), "amax")
        if self.signed:
            self._reduced(self.least[heads, first:last], keys, where, cells.amin(-1), "amin")
        sums = self._own(self.sums[heads, first:last], keys)
        sums.index_add_(1, where, cells.sum(-1).to(sums))

    def blocks(self) -> Blocks | None:
        """The maps, once; None where none are made."""
        if not self.wanted:
            return None
        hidden = self.counts == 0
        if self.signed and not self.whole:  # of each block what is largest without its sign
            self.most = torch.where(-self.least > self.most, self.least, self.most)
        most = self.most.masked_fill_(hidden, math.nan)
        mean = most if self.whole else self.sums.div_(self.counts).masked_fill_(hidden, math.nan)
        return Blocks(most.cpu(), mean.cpu(), self.rows, self.columns)

    def _folded(self, cells: Tensor) -> Tensor:
        """(..., C) -> (..., blocks, columns)."""
        missing = -cells.shape[-1] % self.columns
        if missing:  # padding by nothing would copy
            cells = F.pad(cells, (0, missing))
        folded: Tensor = cells.unflatten(-1, (-1, self.columns))
        return folded

    def _own(self, whole: Tensor, keys: slice) -> Tensor:
        """The blocks of these keys, which begin at one."""
        return whole[..., keys.start // self.columns : -(-keys.stop // self.columns)]

    def _reduced(self, whole: Tensor, keys: slice, where: Tensor, cells: Tensor, by: str) -> None:
        index = where[:, None].expand(cells.shape)
        self._own(whole, keys).scatter_reduce_(1, index, cells.to(whole), by)
