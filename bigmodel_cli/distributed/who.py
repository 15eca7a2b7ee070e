"""Which process this is, among those that train one model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.errors import SpecError

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
_loading = [ALONE]


def world() -> World:
    """This process among the others, as of `begin`."""
    return _world[0]


def samples() -> World:
    """This process among those that take different samples of a step, or other positions of them:
    what they find is summed.
    """
    return _samples[0][0]


def loading() -> World:
    """This process among those that take different samples; fewer than `samples` where neighbours
    have some positions of each (train.parallel.context).
    """
    return _loading[0]


def share_samples(count: int, context: int = 1) -> None:
    """From now on `count` neighbours compute the same, and so many times `context` take the same
    samples; all processes call it.
    """
    now = world()
    _loading[0] = World(now.rank // (count * context), now.size // (count * context), now.local)
    among, group = now, None
    if count > 1:
        import torch.distributed as dist

        among = World(now.rank // count, now.size // count, now.local)
        made = [dist.new_group(list(range(at, now.size, count))) for at in range(count)]
        group = made[now.rank % count]
    _samples[0] = among, group


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


def samples_group() -> Any:
    """The group of `samples`; None: all."""
    return _samples[0][1]


def neighbours() -> int:
    """The processes on this machine."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 8 else world().size


def known(found: World) -> None:
    """From now on this process is that one."""
    _world[0], _samples[0], _loading[0] = found, (found, None), found
