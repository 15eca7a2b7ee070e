"""Which process this is, among those that train one model."""

from __future__ import annotations

import os
from dataclasses import dataclass

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


def known(found: World) -> None:
    """From now on this process is that one."""
    _world[0] = found
