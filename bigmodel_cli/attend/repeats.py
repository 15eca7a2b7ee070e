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
    def at(cls, rows: Tensor, columns: Tensor, seen: Tensor | None, count: int) -> Cells | None:
        """Those at these places that are seen, of so many rows."""
        if seen is not None:
            kept = seen[rows, columns]
            rows, columns = rows[kept], columns[kept]
        if not len(rows):
            return None
        having = rows.new_zeros(count, dtype=torch.bool)
        having[rows] = True
        return cls(rows, columns, None, having)

    def sums(self, weights: Tensor) -> Tensor:
        """(h, R)   the weights (h, R, C) of each row that are in these cells."""
        if self.mask is not None:
            return torch.einsum("hrc,rc->hr", weights, self.mask)
        found = weights.new_zeros(weights.shape[:2])
        return found.index_add_(1, self.rows, weights[:, self.rows, self.columns])


class Repeats:
    """The tokens (S) of a text, whose last T are the queries."""

    def __init__(self, ids: Tensor) -> None:
        ids = ids.long()
        self.ids, self.length = ids, len(ids)
        self.before = F.pad(ids, (1, 0), value=-1)[:-1]  # the token before each
        self.sorted = [self._numbers(x).sort() for x in (self.ids, self.before)]

    def _numbers(self, tokens: Tensor) -> Tensor:
        """Numbers that sort places by their tokens, equal ones by the place."""
        return tokens * self.length + torch.arange(self.length, device=tokens.device)

    def of(
        self, queries: Queries, keys: slice, seen: Tensor | None, kind: torch.dtype
    ) -> list[Cells | None]:
        """Of the keys before each query that it sees: those with its token, those after such a one.

        The query's own position is none of them, though it may follow its own token.
        """
        if keys.start >= int(queries.places[-1]):
            return [None, None]
        own, found = self.ids[queries.places], list[Cells | None]()
        ends = queries.places.clamp(keys.start, keys.stop)
        for tokens, (numbers, places) in zip((self.ids, self.before), self.sorted, strict=True):
            first = torch.searchsorted(numbers, own * self.length + keys.start)
            counts = torch.searchsorted(numbers, own * self.length + ends) - first
            total = int(counts.sum())
            if not total:
                found.append(None)
            elif total * SPARSE < len(own) * (keys.stop - keys.start):
                rows = torch.arange(len(own), device=own.device).repeat_interleave(counts)
                skipped = first - (counts.cumsum(0) - counts)
                at = places[torch.arange(total, device=own.device) + skipped[rows]]
                found.append(Cells.at(rows, at - keys.start, seen, len(own)))
            else:
                found.append(self._mask(queries, keys, seen, tokens, kind))
        return found

    def _mask(
        self, queries: Queries, keys: slice, seen: Tensor | None, tokens: Tensor, kind: torch.dtype
    ) -> Cells | None:
        place = torch.arange(keys.start, keys.stop, device=tokens.device)
        mask = self.ids[queries.places][:, None] == tokens[keys]
        mask &= place < queries.places[:, None]
        if seen is not None:
            mask &= seen
        having = mask.any(1)
        none = having.nonzero()[:0, 0]
        return Cells(none, none, mask.to(kind), having) if bool(having.any()) else None
