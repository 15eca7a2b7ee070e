"""What `bench` can time: a kind of work, set up once, done in steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bigmodel_cli.bench.result import WHOLE, Block, Facts, Work
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import DataSet
from bigmodel_cli.device import is_cpu
from bigmodel_cli.lazy import torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.graphs import BEFORE

WARMUP, LEAST = 3, 5
"""Steps before the first block, and the least of a block that is timed alone."""
MARKED = 5


@dataclass(frozen=True)
class Opened:
    """A target: its spec, what is known of its data, and the data itself where it is there.

    `places` are candidates for its name, ever longer. `load` reads a checkpoint with its weights;
    None for a spec. `assets` are a checkpoint's files.
    """

    places: Sequence[str]
    spec: Spec
    info: DatasetInfo
    data: DataSet | None
    load: Callable[[torch.device], Loaded] | None = None
    assets: Mapping[str, bytes] | None = None


class Doing(Protocol):
    """A kind of work on a device, ready to begin."""

    device: torch.device

    def facts(self) -> Facts:
        """What is known of it; the name is empty."""

    def step(self, marked: bool = True) -> Mapping[str, float]:
        """Do it once: the seconds of its parts where `marked`, and of the `WHOLE`, all waiting
        included.

        What comes between two steps (averages, counts) is not part of them.
        """

    def work(self) -> Work | None:
        """What a step asks of the machine, and the machine's peaks, measured now; None for what
        computes nothing.
        """

    def peak_tensors(self) -> int:
        """Bytes that a step holds at once, all that stays included."""

    def close(self) -> None:
        """End what it started."""


def block(doing: Doing, seconds: float, least: int = LEAST) -> Block:
    """Steps for about so many seconds, and at least so many.

    Where marks cost time (on a GPU, which they wait for) every `MARKED`th step, the first among
    them, has marks, and does not count as a whole.
    """
    whole: list[float] = []
    parts: list[Mapping[str, float]] = []
    apart = not is_cpu(doing.device)
    processor = time.process_time()
    deadline = time.perf_counter() + seconds
    number = 0
    while len(whole) < least or time.perf_counter() < deadline:
        marked = not apart or number % MARKED == 0
        number += 1
        found = doing.step(marked)
        if marked:
            parts.append(found)
        if not (marked and apart):
            whole.append(found[WHOLE])
    names = [name for name in parts[0] if name != WHOLE]
    return Block(
        tuple(whole),
        {name: tuple(found[name] for found in parts) for name in names},
        time.process_time() - processor,
    )


def warm(doing: Doing, steps: int = WARMUP) -> None:
    """Steps that are not timed: kernels are compiled, memory is laid out, and on a GPU whole steps
    are recorded.
    """
    for _ in range(steps):
        doing.step()
    for _ in range(0 if is_cpu(doing.device) else BEFORE + 1):
        doing.step(False)


def threads() -> int:
    """How many the CPU computes with."""
    return int(torch.get_num_threads())
