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


def world() -> World:
    """This process among the others, as of `begin`."""
    return _world[0]


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
    _world[0] = found
    return found


def end() -> None:
    """Part from the others."""
    if not world().alone:
        import torch.distributed as dist

        dist.destroy_process_group()
    _world[0] = ALONE


BUCKET = 8 << 20
"""Bytes of tensors that are sent at once."""
Fold = Callable[[list[Tensor]], Tensor]
"""Makes one tensor of those of all processes, by rank."""


def sum_(tensors: Sequence[Tensor], fold: Fold | None = None) -> None:
    """Replace each tensor by its sum over all processes: the same bits in all of them.

    With `fold`, which is to work element by element, by what it makes of the tensors of each.
    """
    if world().alone:
        return
    import torch.distributed as dist

    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        if fold is None:
            dist.all_reduce(flat)
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
    """What each process gives, of any length, by rank."""
    if world().alone:
        return [content]
    longest = most(len(content))
    own = torch.zeros(8 + longest, dtype=torch.uint8)
    own[: 8 + len(content)] = torch.frombuffer(
        bytearray(len(content).to_bytes(8, "little") + content), dtype=torch.uint8
    )
    found = [row.numpy().tobytes() for row in gathered(own)]
    return [row[8 : 8 + int.from_bytes(row[:8], "little")] for row in found]


def gathered(tensor: Tensor) -> list[Tensor]:
    """The tensor of each process, by rank; of one shape and dtype everywhere."""
    if world().alone:
        return [tensor]
    import torch.distributed as dist

    found = [torch.empty_like(tensor) for _ in range(world().size)]
    dist.all_gather(found, tensor.contiguous())
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
