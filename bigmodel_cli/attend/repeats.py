"""Where a text repeats itself: earlier occurrences of a query's token, and what followed them."""

from __future__ import annotations

from dataclasses import dataclass

from bigmodel_cli.attend.tiles import Queries
from bigmodel_cli.lazy import F, Tensor, torch

SPARSE = 16
"""A mask with fewer than one in so many cells is kept as their places."""


@dataclass(frozen=True)
class Cells:
    """Cells of a tile (R, C): as places where they are few, else as a mask."""

    rows: Tensor
    columns: Tensor
    mask: Tensor | None
    having: Tensor  # (R) which rows have one

    @classmethod
    def of(cls, mask: Tensor, kind: torch.dtype) -> Cells:
        """Those of a mask (R, C)."""
        having = mask.any(1)
        few = int(mask.sum()) * SPARSE < mask.numel()
        rows, columns = mask.nonzero(as_tuple=True) if few else (having.nonzero()[:0, 0],) * 2
        return cls(rows, columns, None if few else mask.to(kind), having)

    def sums(self, weights: Tensor) -> Tensor:
        """(h, R)   the weights (h, R, C) of each row that are in these cells."""
        if self.mask is not None:
            return torch.einsum("hrc,rc->hr", weights, self.mask)
        found = weights.new_zeros(weights.shape[:2])
        return found.index_add_(1, self.rows, weights[:, self.rows, self.columns])


class Repeats:
    """The tokens (S) of a text, whose last T are the queries."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids.int()
        self.before = F.pad(self.ids, (1, 0), value=-1)[:-1]  # the token before each

    def of(
        self, queries: Queries, keys: slice, seen: Tensor | None, kind: torch.dtype
    ) -> list[Cells | None]:
        """Of the keys before each query that it sees: those with its token, those after such a one.

        The query's own position is none of them, though it may follow its own token.
        """
        if keys.start >= int(queries.places[-1]):
            return [None, None]
        own, found = self.ids[queries.places][:, None], list[Cells | None]()
        earlier = None
        if keys.stop > int(queries.places[0]):
            place = torch.arange(keys.start, keys.stop, device=own.device)
            earlier = place < queries.places[:, None]
        for tokens in (self.ids, self.before):
            mask = own == tokens[keys]
            for condition in (earlier, seen):
                if condition is not None:
                    mask &= condition
            found.append(Cells.of(mask, kind) if bool(mask.any()) else None)
        return found
