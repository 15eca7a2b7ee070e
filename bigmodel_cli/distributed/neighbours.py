"""Processes that compute each part together, and what they tell one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigmodel_cli.distributed.who import world
from bigmodel_cli.lazy import Tensor, torch

_groups: dict[int, Any] = {}  # of so many neighbours


@dataclass(frozen=True)
class Neighbours:
    """Processes with neighbouring ranks, this one among them, and what they tell one another."""

    rank: int
    size: int
    group: Any

    @staticmethod
    def of(count: int) -> Neighbours:
        """So many, of which the world has a multiple; all processes call it, in one order."""
        import torch.distributed as dist

        now = world()
        if count not in _groups:
            starts = range(0, now.size, count)
            made = [dist.new_group(list(range(at, at + count))) for at in starts]
            _groups[count] = made[now.rank // count]
        return Neighbours(now.rank % count, count, _groups[count])

    def reduced(self, x: Tensor, largest: bool = False) -> Tensor:
        """The sum, or the largest, of all their tensors, new."""
        import torch.distributed as dist

        found = x.detach().clone(memory_format=torch.contiguous_format)
        kind = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        dist.all_reduce(found, kind, group=self.group)
        return found

    def all_of(self, x: Tensor) -> list[Tensor]:
        """Their tensors, by rank, whose last axes may differ."""
        import torch.distributed as dist

        length = torch.tensor([x.shape[-1]], device=x.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self.group)
        each = [int(n) for n in lengths]
        room = x.new_zeros(*x.shape[:-1], max(each))
        room[..., : x.shape[-1]] = x.detach()
        found = [torch.empty_like(room) for _ in range(self.size)]
        dist.all_gather(found, room, group=self.group)
        return [y[..., :n] for y, n in zip(found, each, strict=True)]


def forget_groups() -> None:
    """The processes part."""
    _groups.clear()
