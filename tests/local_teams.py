"""Teams in one process: torch's `LocalTensorMode` computes what each process would, op by op.

Parts are divided by the real code, once for each rank. Their weights and buffers become
LocalTensors in one module, and numbers that differ between ranks become numbers per rank, so that
one pass is that of all processes. What they exchange goes through `Neighbours` and c10d, which the
mode computes from the tensors of all ranks.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._local_tensor import LocalIntNode, LocalTensor, LocalTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from bigmodel_cli.distributed import Neighbours
from bigmodel_cli.shares import Division, Team, divide
from bigmodel_cli.tensor_parallel import Processes

_groups: dict[int, Any] = {}


class Planned(Team):
    """One process as parts are divided, before anything is computed."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def neighbours(self, count: int) -> Planned:
        return Planned(self.rank % count, count)


class Local(Processes):
    """All processes of each team of `size` among `among`; `calls` has the sizes of what is told."""

    def __init__(self, size: int, among: int) -> None:
        ranks = torch.SymInt(LocalIntNode({rank: rank % size for rank in range(among)}))
        super().__init__(Neighbours(ranks, size, _groups[size]))  # type: ignore[arg-type]
        self.among, self.calls = among, list[int]()

    def sum(self, x: Tensor) -> Tensor:
        self.calls.append(x.numel())
        return super().sum(x)

    def largest(self, x: Tensor) -> Tensor:
        self.calls.append(x.numel())
        return super().largest(x)

    def all_of(self, x: Tensor) -> list[Tensor]:
        self.calls.append(x.numel())
        return super().all_of(x)

    def neighbours(self, count: int) -> Team:
        return self if count == self.size else Local(count, self.among)


@contextlib.contextmanager
def divided(part: nn.Module, size: int) -> Iterator[tuple[nn.Module, Division]]:
    """Inside, `size` processes compute at once; the part as they have it, each its share."""
    own = [copy.deepcopy(part) for _ in range(size)]
    divisions = [divide(p, Planned(rank, size)) for rank, p in enumerate(own)]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        for count in range(1, size + 1):
            if size % count == 0:
                _groups[count] = dist.new_group(list(range(count)))
        team = Local(size, size)
        one = joined(own, team)
        named = dict(one.named_parameters(remove_duplicate=False))
        tensors = {name: named[name] for name in divisions[0].tensors}
        with LocalTensorMode(size):
            yield one, Division(team, divisions[0].shares, tensors)
    finally:
        _groups.clear()
        dist.destroy_process_group()


def joined(own: list[nn.Module], team: Local) -> nn.Module:
    """One module of those that each rank has."""
    weights: dict[int, nn.Parameter] = {}  # tied ones stay one
    for modules in zip(*(part.modules() for part in own), strict=True):
        one = modules[0]
        for name, weight in one._parameters.items():
            if weight is None:
                continue
            if id(weight) not in weights:
                every = local([m._parameters[name].detach() for m in modules])
                weights[id(weight)] = nn.Parameter(every, requires_grad=weight.requires_grad)
            one._parameters[name] = weights[id(weight)]
        for name, buffer in one._buffers.items():
            if buffer is not None:
                one._buffers[name] = local([m._buffers[name] for m in modules])
        for name in vars(one):
            values = [vars(module)[name] for module in modules]
            vars(one)[name] = in_common(name, values, team)
    return own[0]


def in_common(name: str, values: list[Any], team: Local) -> Any:
    """An attribute of all ranks: numbers that differ become one per rank."""
    first = values[0]
    if isinstance(first, Planned):
        return team.neighbours(first.size)
    if isinstance(first, int) and any(value != first for value in values):
        return torch.SymInt(LocalIntNode(dict(enumerate(values))))
    if isinstance(first, (int, float, str, tuple, list, range, dict)) and not name.startswith("_"):
        assert all(value == first for value in values), (name, values)
    return first


def local(tensors: list[Tensor]) -> Tensor:
    """One LocalTensor of those that each rank has."""
    return LocalTensor(dict(enumerate(tensors)))


def alike(x: Tensor, size: int) -> Tensor:
    """What all ranks have alike."""
    return local([x.detach().clone() for _ in range(size)])


def one_of(x: Any) -> Tensor:
    """What all ranks have, the same to the bit. Raises `AssertionError` where it is not."""
    found: Tensor = x.detach().reconcile()
    return found
