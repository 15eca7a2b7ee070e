"""Processes that compute each part together, and what they tell one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigmodel_cli.distributed.who import world
from bigmodel_cli.lazy import Tensor, torch

_groups: dict[tuple[int, int], Any] = {}  # of so many, with so many ranks from one to the next


@dataclass(frozen=True)
class Neighbours:
    """Processes with neighbouring ranks, or every n-th one, this one among them, and what they
    tell one another.
    """

    rank: int
    size: int
    group: Any

    @staticmethod
    def of(count: int, every: int = 1) -> Neighbours:
        """So many, of which the world has a multiple; all processes call it, in one order.

        With `every`, those whose ranks leave the same rest, out of `count * every` neighbours.
        """
        import torch.distributed as dist

        now, span = world(), count * every
        if (count, every) not in _groups:
            starts = [first + rest for first in range(0, now.size, span) for rest in range(every)]
            made = [dist.new_group(list(range(at, at + span, every))) for at in starts]
            own = now.rank // span * every + now.rank % every
            _groups[count, every] = made[own]
        return Neighbours(now.rank % span // every, count, _groups[count, every])

    @staticmethod
    def alike(count: int) -> Neighbours:
        """The processes with the same place among so many neighbours; all processes call it."""
        import torch.distributed as dist

        now = world()
        made = [dist.new_group(list(range(at, now.size, count))) for at in range(count)]
        return Neighbours(now.rank // count, now.size // count, made[now.rank % count])

    def moved(self, x: Tensor, to: list[int], of: list[int]) -> Tensor:
        """(sum of to, ...) -> (sum of of, ...)   the next `to[r]` rows go to process r, from which
        `of[r]` come, by rank; as bytes, of any dtype.
        """
        import torch.distributed as dist

        found = x.new_empty(sum(of), *x.shape[1:])
        given = x.detach().contiguous()
        dist.all_to_all_single(
            found.view(torch.uint8), given.view(torch.uint8), of, to, group=self.group
        )
        return found

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

        length = torch.full((1,), x.shape[-1], dtype=torch.int64, device=x.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self.group)
        each = [int(n) for n in lengths]
        room = x.new_zeros(*x.shape[:-1], max(each))
        room.narrow(-1, 0, x.shape[-1]).copy_(x.detach())
        found = [torch.empty_like(room) for _ in range(self.size)]
        dist.all_gather(found, room, group=self.group)
        return [y[..., :n] for y, n in zip(found, each, strict=True)]

    def stacked(self, x: Tensor) -> Tensor:
        """(size, ...)   their tensors of one shape, by rank."""
        import torch.distributed as dist

        found = x.new_empty(self.size, *x.shape)
        dist.all_gather(list(found.unbind()), x.detach().contiguous(), group=self.group)
        return found

    def share_of_sum(self, x: Tensor) -> Tensor:
        """(size, ...) -> (...)   the sum of what each of them has for this process."""
        import torch.distributed as dist

        found, name = x.new_empty(x.shape[1:]), "reduce_scatter_single"
        scatter: Any = getattr(dist, name, None) or dist.reduce_scatter_tensor  # before torch 2.14
        scatter(found.view(-1), x.detach().reshape(-1), group=self.group)
        return found


def forget_groups() -> None:
    """The processes part."""
    _groups.clear()
