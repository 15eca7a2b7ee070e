"""What else the machine does while something is timed: stolen time, other processes, frequency.

Where the system does not tell (no /proc), nothing is known and nothing is rejected.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.bench.result import Mood

PROC = Path("/proc")
MOST_STOLEN, MOST_OTHERS, LEAST_SPEED = 0.02, 0.05, 0.95
"""A block is rejected above these shares of the processors' time, or below this part of the
frequency that most blocks had.
"""
_MHZ = re.compile(r"^processor\s*: (\d+)$(?:\n.+)*?\ncpu MHz\s*: (\d+(?:\.\d+)?)", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """Counters at one moment of the processors that this process may run on: ticks, those stolen,
    those not idle.
    """

    all: float
    stolen: float
    busy: float
    mhz: float | None


def read(proc: Path = PROC, processors: Collection[int] | None = None) -> Reading | None:
    """The counters now; None where the system has none.

    Of `processors`, those that this process may run on unless they are given: what runs beside
    them, as where it is pinned by taskset, slows nothing down. Fields of /proc/stat: user, nice,
    system, idle, iowait, irq, softirq, steal (proc_stat(5)).
    """
    own = processors if processors is not None else _allowed()
    try:
        lines = [line.split() for line in (proc / "stat").read_text().splitlines()]
        names = {words[0] for words in lines if words}
        if own is not None and not names.issuperset(f"cpu{number}" for number in own):
            own = None  # a container's own file, which numbers its processors anew: all are its own
        kept = {"cpu"} if own is None else {f"cpu{number}" for number in own}
        found = [words[1:9] for words in lines if words and words[0] in kept]
        numbers = [sum(map(float, field)) for field in zip(*found, strict=True)]
    except (OSError, ValueError):
        return None
    if len(numbers) < 8:
        return None
    idle, stolen = numbers[3] + numbers[4], numbers[7]
    return Reading(sum(numbers), stolen, sum(numbers) - idle - stolen, _frequency(proc, own))


def _allowed() -> Collection[int] | None:
    """Those of any thread: OMP_PROC_BIND leaves the first thread one processor alone."""
    found: set[int] = set()
    try:
        found |= os.sched_getaffinity(0)
        for thread in (PROC / "self" / "task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                found |= os.sched_getaffinity(int(thread.name))
    except AttributeError:  # a system that pins no process
        return None
    except OSError:  # no list of threads
        pass
    return found


def _frequency(proc: Path, own: Collection[int] | None) -> float | None:
    """The mean, in MHz."""
    try:
        text = (proc / "cpuinfo").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    found = [float(mhz) for number, mhz in _MHZ.findall(text) if own is None or int(number) in own]
    return statistics.fmean(found) if found else None


def mood(before: Reading | None, after: Reading | None, own_seconds: float) -> Mood:
    """Between two readings, of which `own_seconds` of processor time were the timed work's."""
    if before is None or after is None or after.all <= before.all:
        return Mood()
    whole = after.all - before.all
    own = own_seconds * os.sysconf("SC_CLK_TCK")
    others = max(0.0, after.busy - before.busy - own) / whole
    return Mood((after.stolen - before.stolen) / whole, others, after.mhz)


def one_tick(before: Reading | None, after: Reading | None) -> float:
    """The part of the time between two readings that is in doubt, as the system counts whole ticks:
    of a short block of a single processor it is a large one.
    """
    if before is None or after is None or after.all <= before.all:
        return 0.0
    return 1 / (after.all - before.all)


def refusal(found: Mood, usual_mhz: float | None, doubt: float = 0.0) -> str:
    """Why a block in that mood does not count; "" where it does. `doubt` of the time is not held
    against others.
    """
    if found.stolen is not None and found.stolen > MOST_STOLEN:
        return f"{100 * found.stolen:.0f} % of the processors' time was stolen"
    if found.others is not None and found.others > MOST_OTHERS + doubt:
        return f"other processes took {100 * found.others:.0f} % of the processors' time"
    slow = usual_mhz is not None and found.mhz is not None and found.mhz < LEAST_SPEED * usual_mhz
    return f"the processors ran at {found.mhz:.0f} MHz" if slow else ""
