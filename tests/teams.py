"""Teams of threads: what processes would tell one another, in one process and in a fixed order."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bigmodel_cli.shares import Team


class Meeting:
    """Where the threads of a team leave a tensor each, and take all of them."""

    def __init__(self, size: int) -> None:
        self.size, self.left = size, [torch.empty(0)] * size
        self.barrier = threading.Barrier(size, timeout=120)

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        self.left[rank] = x.detach()
        self.barrier.wait()
        found = list(self.left)
        self.barrier.wait()
        return found


class Threads(Team):
    """One thread of a team; `calls` counts what was exchanged."""

    def __init__(self, rank: int, size: int, meetings: dict[tuple[int, int], Meeting]) -> None:
        self.rank, self.size, self.meetings, self.first = rank, size, meetings, 0
        self.calls: list[int] = []

    def exchange(self, x: Tensor) -> list[Tensor]:
        self.calls.append(x.numel())
        return self.meetings[self.first, self.size].exchange(self.rank, x)

    def sum(self, x: Tensor) -> Tensor:
        return torch.stack(self.exchange(x)).sum(0)

    def largest(self, x: Tensor) -> Tensor:
        return torch.stack(self.exchange(x)).amax(0)

    def all_of(self, x: Tensor) -> list[Tensor]:
        return self.exchange(x)

    def neighbours(self, count: int) -> Threads:
        found = Threads(self.rank % count, count, self.meetings)
        found.first = self.first + self.rank // count * count
        return found


def meetings(size: int) -> dict[tuple[int, int], Meeting]:
    """Of all teams of neighbours among so many threads."""
    counts = [count for count in range(1, size + 1) if size % count == 0]
    return {(f, count): Meeting(count) for count in counts for f in range(0, size, count)}


def together(size: int, run: Callable[[Team], Any]) -> list[Any]:
    """What `run` gives in each thread, by rank; the first error of one is raised."""
    found: list[Any] = [None] * size
    errors: list[BaseException] = []
    places = meetings(size)

    def body(rank: int) -> None:
        try:
            found[rank] = run(Threads(rank, size, places))
        except BaseException as error:
            errors.append(error)
            for place in places.values():
                place.barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (real or errors)[0]
    return found


def copied(part: Any) -> Any:
    """The part as another process would have it, with nothing shared."""
    return copy.deepcopy(part)
