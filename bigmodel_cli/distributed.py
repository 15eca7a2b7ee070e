"""Several processes that train one model: who is there, and what they tell one another.

The only importer of torch.distributed. Without `torchrun` there is one process, the world has size
1, and nothing here imports it, waits or copies. What is exchanged is tensors and JSON, never
pickles.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch

MOST_PROCESSES = 1 << 20
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What torchrun tells each process."""


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local: int = 0  # number on its machine

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` items are this process's: in order, and as equal as can be."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)


ALONE = World()
_world = [ALONE]
_samples: list[tuple[World, Any]] = [(ALONE, None)]  # and the group, None: all
_groups: dict[int, Any] = {}  # of so many neighbours


def world() -> World:
    """This process among the others, as of `begin`."""
    return _world[0]


def samples() -> World:
    """This process among those that take different samples of a step."""
    return _samples[0][0]


def share_samples(count: int) -> None:
    """From now on `count` neighbours take the same samples; all processes call it."""
    now = world()
    among, group = now, None
    if count > 1:
        import torch.distributed as dist

        among = World(now.rank // count, now.size // count, now.local)
        made = [dist.new_group(list(range(at, now.size, count))) for at in range(count)]
        group = made[now.rank % count]
    _samples[0] = among, group


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


def announced() -> World:
    """What torchrun's environment says, before any process is connected.

    Raises `SpecError` where it says half of it, or nonsense.
    """
    given = [os.environ.get(name) for name in VARIABLES]
    if given[0] is None and given[1] is None:
        return ALONE
    numbers = [int(x) if x and x.isascii() and x.isdigit() and len(x) < 8 else -1 for x in given]
    rank, size, local = numbers
    if not 0 <= rank < size <= MOST_PROCESSES or local < 0:
        said = ", ".join(f"{n}={x}" for n, x in zip(VARIABLES, given, strict=True))
        raise SpecError(f"environment: {said}: not what torchrun sets; start it with torchrun")
    return World(rank, size, local)


def neighbours() -> int:
    """The processes on this machine."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 8 else world().size


def begin(device: torch.device, seconds: float) -> World:
    """Connect to the others: over gloo on CPUs, over NCCL on GPUs.

    A wait for another process ends after that many seconds, with an error.
    """
    found = announced()
    if found != ALONE:
        import torch.distributed as dist

        dist.init_process_group(
            # numbers of the host are told over gloo, so that nobody waits for a GPU
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            timeout=datetime.timedelta(seconds=seconds),
        )
    _world[0], _samples[0] = found, (found, None)
    return found


def end() -> None:
    """Part from the others."""
    if not world().alone:
        import torch.distributed as dist

        dist.destroy_process_group()
    _world[0], _samples[0] = ALONE, (ALONE, None)
    _groups.clear()


BUCKET = 8 << 20
"""Bytes of tensors that are sent at once."""
Fold = Callable[[list[Tensor]], Tensor]
"""Makes one tensor of those of all processes, by rank."""


def sum_(tensors: Sequence[Tensor], fold: Fold | None = None) -> None:
    """Replace each tensor by its sum over `samples`: the same bits in all of them.

    With `fold`, which is to work element by element, by what it makes of the tensors of each.
    """
    if samples().alone:
        return
    import torch.distributed as dist

    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        if fold is None:
            dist.all_reduce(flat, group=_samples[0][1])
        else:
            flat = fold(gathered(flat))
        parts = flat.split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(
            list(bucket), [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)]
        )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of one dtype and of about `BUCKET` bytes, in order."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


def most(number: int) -> int:
    """The greatest of the numbers that each process gives; nobody waits for a GPU."""
    if world().alone:
        return number
    import torch.distributed as dist

    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gathered_bytes(content: bytes) -> list[bytes]:
    """What each of `samples` gives, of any length, by rank."""
    if samples().alone:
        return [content]
    longest = most(len(content))
    own = torch.zeros(8 + longest, dtype=torch.uint8)
    own[: 8 + len(content)] = torch.frombuffer(
        bytearray(len(content).to_bytes(8, "little") + content), dtype=torch.uint8
    )
    found = [row.numpy().tobytes() for row in gathered(own)]
    return [row[8 : 8 + int.from_bytes(row[:8], "little")] for row in found]


def gathered(tensor: Tensor) -> list[Tensor]:
    """The tensor of each of `samples`, by rank; of one shape and dtype everywhere."""
    if samples().alone:
        return [tensor]
    import torch.distributed as dist

    found = [torch.empty_like(tensor) for _ in range(samples().size)]
    dist.all_gather(found, tensor.contiguous(), group=_samples[0][1])
    return found


def told(value: Any) -> Any:
    """The first process's value, which JSON can hold, in all processes."""
    if world().alone:
        return value
    import torch.distributed as dist

    content = json.dumps(value).encode() if world().first else b""
    size = torch.tensor([len(content)])
    dist.broadcast(size, 0)
    data = torch.zeros(int(size), dtype=torch.uint8)
    if world().first:
        data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(data, 0)
    return json.loads(bytes(data.tolist()))


def wait_for_all() -> None:
    """Return when every process has come here."""
    if not world().alone:
        import torch.distributed as dist

        dist.barrier()
