"""What other work takes from a training: the share of the time that it did not have."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bigmodel_cli.bench.mood import PROC, Reading, mood, read

MOST = 0.05
"""Less than this share lost counts as none, as in the blocks of `bench`."""

LOST = "lost"
"""The key, in a record of metrics.jsonl, of the seconds lost since the one before."""


def own_seconds(proc: Path = PROC) -> float:
    """Processor time of this process and of its loader workers, in seconds."""
    workers = sum(_of(proc / f"{child.pid}") for child in multiprocessing.active_children())
    return time.process_time() + workers


def _of(folder: Path) -> float:
    """Of a process: fields utime and stime of its stat (proc_pid_stat(5)); 0 where it is gone."""
    try:
        words = (folder / "stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _processors() -> int:
    """That this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # a system that pins no process
        return os.cpu_count() or 1


@dataclass
class Others:
    """Looks at the processors between two calls of `share`.

    What others do to memory, caches and GPUs is not seen.
    """

    reading: Callable[[], Reading | None] = read
    own: Callable[[], float] = own_seconds
    processors: Callable[[], int] = _processors
    before: tuple[Reading | None, float] = field(default=(None, 0.0), init=False)

    def begin(self) -> None:
        """What was before does not count."""
        self.before = self.reading(), self.own()

    def share(self, threads: int) -> float:
        """Of the time since `begin` or the last call, what a training of so many threads lost.

        It wants a processor for each thread, and had those that neither others nor the host of this
        machine used. 0 where the system does not tell.
        """
        (then, used), (now, using) = self.before, (self.reading(), self.own())
        self.before = now, using
        found = mood(then, now, using - used)
        if found.others is None or found.stolen is None:
            return 0.0
        processors = self.processors()
        left = processors * max(0.0, 1 - found.others - found.stolen)
        lost = 1 - left / max(1, min(threads, processors))
        return min(1.0, lost) if lost > MOST else 0.0
