"""Several processes that train one model: who is there, and what they tell one another.

The only importer of torch.distributed. Without `torchrun` there is one process, the world has size
1, and nothing here imports it, waits or copies. What is exchanged is tensors and JSON, never
pickles.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
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


def begin(device: torch.device, seconds: float) -> World:
    """Connect to the others: over gloo on CPUs, over NCCL on GPUs.

    A wait for another process ends after that many seconds, with an error.
    """
    found = announced()
    if found != ALONE:
        import torch.distributed as dist

        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
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


def sum_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes."""
    if world().alone:
        return
    import torch.distributed as dist

    for tensor in tensors:
        dist.all_reduce(tensor)


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
