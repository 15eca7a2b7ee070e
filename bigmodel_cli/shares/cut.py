"""How one weight is divided: the words in which a part says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.shares.team import Team


@dataclass(frozen=True)
class Run:
    """Neighbours along a weight's axis: `units` of `width` places each, which stay together.

    Each of n processes has the units / n next ones. Where `repeated`, and there are fewer units
    than processes, n / units neighbours have the same one, as the few key/value heads of grouped
    attention. Where `uneven`, shares may differ by one unit.
    """

    what: str
    units: int
    width: int = 1
    repeated: bool = False
    uneven: bool = False

    @property
    def length(self) -> int:
        """Places in all."""
        return self.units * self.width

    def copies(self, size: int) -> int:
        """How many of `size` processes have the same unit."""
        return size // self.units if self.repeated and self.units < size else 1

    def fault(self, size: int) -> str:
        """Why it cannot be divided among `size` processes; "" where it can."""
        if self.units % size == 0 or (self.uneven and self.units >= size):
            return ""
        if self.repeated and self.units < size and size % self.units == 0:
            return ""
        return (
            f"{self.units} {self.what} cannot be shared evenly by {size} processes; take a"
            " number that they divide, or another number of processes (train.parallel)"
        )

    def count(self, rank: int, size: int) -> int:
        """How many units process `rank` has; where shares are even, as many as any other."""
        if self.uneven:
            return (rank + 1) * self.units // size - rank * self.units // size
        return max(1, self.units // size)

    def share(self, rank: int, size: int) -> range:
        """The units of process `rank`."""
        if self.copies(size) > 1:
            return range(rank * self.units // size, rank * self.units // size + 1)
        return range(rank * self.units // size, (rank + 1) * self.units // size)

    def own(self, rank: int, size: int) -> slice:
        """Their places, from the run's beginning."""
        units = self.share(rank, size)
        return slice(units.start * self.width, units.stop * self.width)


@dataclass(frozen=True)
class Cut:
    """A weight that is divided along `axis`, on which these runs stand side by side."""

    axis: int
    runs: tuple[Run, ...]

    def fault(self, size: int) -> str:
        """Why it cannot be divided among `size` processes; "" where it can."""
        return next((fault for run in self.runs if (fault := run.fault(size))), "")

    def taken(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """The share of process `rank`, a copy. Raises `ValueError` for another length."""
        if whole.shape[self.axis] != sum(run.length for run in self.runs):
            raise ValueError(f"runs {self.runs} along axis {self.axis} of {tuple(whole.shape)}")
        pieces = whole.split([run.length for run in self.runs], self.axis)
        own = [
            piece[(slice(None),) * self.axis + (run.own(rank, size),)]
            for run, piece in zip(self.runs, pieces, strict=True)
        ]
        return torch.cat(own, self.axis).contiguous()

    def gathered(self, own: Tensor, team: Team) -> Tensor:
        """The whole of a tensor of which each process has its share; all call it."""
        flat = own.movedim(self.axis, -1).contiguous()  # shares may differ along that axis
        return self.joined([t.movedim(-1, self.axis) for t in team.all_of(flat)])

    def lengths(self, rank: int, size: int) -> list[int]:
        """Of each run in the share of process `rank`."""
        return [run.count(rank, size) * run.width for run in self.runs]

    def joined(self, shares: list[Tensor]) -> Tensor:
        """The whole weight of all processes' shares: the inverse of `taken`."""
        size = len(shares)
        split = [s.split(self.lengths(r, size), self.axis) for r, s in enumerate(shares)]
        found = [
            split[rank][number]
            for number, run in enumerate(self.runs)
            for rank in range(0, size, run.copies(size))
        ]
        return torch.cat(found, self.axis)


@dataclass(frozen=True)
class Whole:
    """A weight that every process has; `partial`: each knows a part of its gradient alone.

    That is so where it is read after `Team.enter` and before `Team.leave`, as the norm that all
    heads share: the gradients are summed when those of a step are complete.
    """

    partial: bool = False

    def fault(self, size: int) -> str:
        """Nothing: it is not divided."""
        return ""


WHOLE, PARTIAL = Whole(), Whole(partial=True)
Share = Cut | Whole
Shares = dict[str, Share]
"""How each weight and buffer of a module is divided, by name within it."""


def by_outputs(*runs: Run) -> Cut:
    """A matrix (out, in), a bias (out) or a table (out, ...) divided by its first axis."""
    return Cut(0, runs)


def by_inputs(*runs: Run) -> Cut:
    """A matrix (out, in) divided by its columns: the processes' products are to be summed."""
    return Cut(1, runs)


def own_of(part: Module, shares: Mapping[str, Share]) -> Shares:
    """Those of the shares whose weight or buffer the part has, with its options."""
    there = {name for name, _ in part.named_parameters(remove_duplicate=False)} | {
        n for n, _ in part.named_buffers()
    }
    return {name: share for name, share in shares.items() if name in there}
