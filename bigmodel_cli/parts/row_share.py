"""Context parallel: a process has some positions of each row, and gets from others what it attends
to.

Attention alone mixes positions: it gathers the keys and values of all of them, whose gradients are
summed to where they came from (Grattafiori et al. 2024, Llama 3, section 3.3.2). Everything else is
computed for a process's own positions. A module says by `context_fault` that this holds for it
(contract.py); whoever lets rows pass divided asks for it around the model's call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.config import PADDING
from bigmodel_cli.draw import placed
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.shares import ALONE, Team

_TEAMS: list[Team] = [ALONE]


@contextlib.contextmanager
def rows_divided(team: Team) -> Iterator[None]:
    """Inside, each process of the team computes some positions of rows that all of them have."""
    _TEAMS.append(team)
    try:
        yield
    finally:
        _TEAMS.pop()


def share_of_row(length: int) -> RowShare | None:
    """This process's share of rows of that many positions; None where it has all of them."""
    team = _TEAMS[-1]
    return None if team.size == 1 else RowShare(team, length)


@dataclass(frozen=True)
class RowShare:
    """The positions that a process has of rows of `length` (T), which a team divides.

    Each of n processes has t = T / n of them, give or take one: a run from the first half of the
    row and one from the second, the first process the outermost ones, so that all see about as many
    keys before them. Where T < n, some have none, and compute one of padding that nobody reads.
    """

    team: Team
    length: int

    @property
    def runs(self) -> tuple[range, ...]:
        """The runs of neighbouring positions, in order."""
        own = runs_of(self.length, self.team.size)[self.team.rank]
        return own or (range(max(0, self.length - 1), self.length),)

    @property
    def spare(self) -> bool:
        """Whether this process's position is another one's, and only passes."""
        return self.length > 0 and not runs_of(self.length, self.team.size)[self.team.rank]

    @property
    def count(self) -> int:
        """Positions that others get from this process."""
        return 0 if self.spare else sum(map(len, self.runs))

    def places(self, device: torch.device) -> Tensor:
        """(t,)   the positions."""
        return _places(self.runs, device)

    def own(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (B, t, ...)   what is at them."""
        return x.index_select(1, self.places(x.device))

    def tokens(self, x: Tensor) -> Tensor:
        """(B, T) -> (B, t)   the tokens at them; padding where this process has none."""
        found = self.own(x)
        return torch.full_like(found, PADDING) if self.spare else found

    def marked(self, x: Tensor) -> Tensor:
        """(B, T) bool -> (B, t)   the same of marks; False where this process has none."""
        return self.own(x) & (not self.spare)

    def drawing(self) -> contextlib.AbstractContextManager[None]:
        """Inside, layers draw what they would draw at these positions of whole rows."""
        return placed(self.runs)

    def drawing_whole(self) -> contextlib.AbstractContextManager[None]:
        """Inside it, whole rows pass: what was gathered."""
        return placed((range(self.length),))

    def whole(self, *own: Tensor) -> list[Tensor]:
        """(B, h, t, w) each -> (B, h, T, w) each   with the positions of all processes.

        They travel at once; a gradient comes back as the sum of those of all processes.
        """
        flat = [x.transpose(1, 2).flatten(2) for x in own]  # (B, t, h * w)
        every = _gathering().apply(torch.cat(flat, -1), self)
        parts = every.split([x.shape[-1] for x in flat], -1)
        return [
            part.unflatten(-1, (x.shape[1], x.shape[3])).transpose(1, 2).to(x.dtype)
            for part, x in zip(parts, own, strict=True)
        ]

    def gathered(self, x: Tensor) -> Tensor:
        """(B, t, w) -> (B, T, w)   the positions of all processes, in order."""
        most = _most(self.length, self.team.size)
        room = x.new_zeros(len(x), most, x.shape[-1])  # of one shape everywhere
        room[:, : self.count] = x[:, : self.count]
        every = self.team.stacked(room).transpose(0, 1).flatten(1, 2)  # (B, n * most, w)
        return every.index_select(1, _order(self.length, self.team.size, x.device))

    def returned(self, gradient: Tensor) -> Tensor:
        """(B, T, w) -> (B, t, w)   the sum of all processes' gradients of what is from here.

        In fp32 at least, as one process sums it.
        """
        most, size = _most(self.length, self.team.size), self.team.size
        kind = torch.promote_types(gradient.dtype, torch.float32)
        spread = gradient.new_zeros(len(gradient), size * most, gradient.shape[-1], dtype=kind)
        spread.index_copy_(1, _order(self.length, size, gradient.device), gradient.to(kind))
        by_rank = spread.unflatten(1, (size, most)).transpose(0, 1).contiguous()
        found = self.team.share_of_sum(by_rank).to(gradient.dtype)
        own = sum(map(len, self.runs))
        return found.new_zeros(len(found), own, found.shape[-1]) if self.spare else found[:, :own]


@functools.lru_cache(maxsize=256)
def runs_of(length: int, size: int) -> tuple[tuple[range, ...], ...]:
    """The runs of each of so many processes, by rank; neighbouring ones are one, and none is
    empty.
    """
    counts = [(r + 1) * length // size - r * length // size for r in range(size)]
    halves = [*(-(-n // 2) for n in counts), *(n // 2 for n in reversed(counts))]
    ends = [sum(halves[: i + 1]) for i in range(2 * size)]
    pieces = [range(end - n, end) for n, end in zip(halves, ends, strict=True)]
    found = []
    for rank in range(size):
        first, second = pieces[rank], pieces[2 * size - 1 - rank]
        if first.stop == second.start:
            first, second = range(first.start, second.stop), range(0)
        found.append(tuple(run for run in (first, second) if run))
    return tuple(found)


def _most(length: int, size: int) -> int:
    """The most positions of a process."""
    return -(-length // size)


@functools.lru_cache(maxsize=256)
def _places(runs: tuple[range, ...], device: torch.device) -> Tensor:
    """(t,)   all numbers of the runs."""
    return torch.cat([torch.arange(run.start, run.stop, device=device) for run in runs])


@functools.lru_cache(maxsize=64)
def _order(length: int, size: int, device: torch.device) -> Tensor:
    """(T,)   where each position is among those of all processes, side by side, `_most` of each."""
    order = torch.empty(length, dtype=torch.int64)
    for rank, runs in enumerate(runs_of(length, size)):
        first = rank * _most(length, size)
        for run in runs:
            order[run.start : run.stop] = torch.arange(first, first + len(run))
            first += len(run)
    return order.to(device)


@functools.cache
def _gathering() -> Any:
    """The class; torch is imported by now."""

    class Gathering(torch.autograd.Function):
        """All positions, of which each process gives some."""

        @staticmethod
        def forward(context: Any, x: Tensor, share: RowShare) -> Tensor:
            context.share = share
            return share.gathered(x)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
            return context.share.returned(gradient), None

    return Gathering
