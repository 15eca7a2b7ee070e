"""What `bench` can time: a kind of work, set up once, done in steps."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bigmodel_cli.bench.result import WHOLE, Block, Facts, Work
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import DataSet
from bigmodel_cli.lazy import torch
from bigmodel_cli.spec import Spec

WARMUP, LEAST = 3, 5
"""Steps before the first block, and the least of a block that is timed alone."""


@dataclass(frozen=True)
class Opened:
    """A target: its spec, what is known of its data, and the data itself where it is there.

    `places` are candidates for its name, ever longer.
    """

    places: Sequence[str]
    spec: Spec
    info: DatasetInfo
    data: DataSet | None


class Doing(Protocol):
    """A kind of work, ready to begin."""

    def facts(self) -> Facts:
        """What is known of it; the name is empty."""

    def step(self) -> Mapping[str, float]:
        """Do it once: the seconds of its parts, and of the `WHOLE`, all waiting included.

        What comes between two steps (averages, counts) is not part of them.
        """

    def work(self) -> Work:
        """What a step asks of the machine, and the machine's peaks, measured now."""

    def peak_tensors(self) -> int:
        """Bytes that a step holds at once, all that stays included."""

    def close(self) -> None:
        """End what it started."""


def block(doing: Doing, seconds: float, least: int = LEAST) -> Block:
    """Steps for about so many seconds, and at least so many."""
    times: list[Mapping[str, float]] = []
    processor = time.process_time()
    deadline = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < deadline:
        times.append(doing.step())
    names = [name for name in times[0] if name != WHOLE]
    return Block(
        tuple(found[WHOLE] for found in times),
        {name: tuple(found[name] for found in times) for name in names},
        time.process_time() - processor,
    )


def warm(doing: Doing) -> None:
    """Steps that are not timed: kernels are compiled, memory is laid out."""
    for _ in range(WARMUP):
        doing.step()


def threads() -> int:
    """How many the CPU computes with."""
    return int(torch.get_num_threads())
