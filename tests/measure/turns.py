"""Training loops of several programs, each in a process of its own, that take turns.

A worker calls `Turns.step` after each of its steps: it goes on for as many steps as it is told, and
waits, asleep, while the others have theirs. So all are measured in one run, by the same clock, and
what else the machine does hits all alike. The processor's own time stands beside: with one thread
(OMP_NUM_THREADS=1) other work lengthens it little. This needs the standard library only, since
peers may not have our packages.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO


class Turns:
    """A worker's side. What it prints goes to stderr; the pipes are for the turns."""

    def __init__(self) -> None:
        self.commands, self.answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        self.left, self.started, self.used = 1, 0.0, 0.0

    def step(self, done: Callable[[], object] = lambda: None) -> None:
        """A step is over; `done` waits until it is (a device or library that computes behind)."""
        self.left -= 1
        if self.left:
            return
        done()
        taken = time.perf_counter() - self.started, time.process_time() - self.used
        print(*taken, file=self.answers, flush=True)
        line = self.commands.readline().strip()
        if not line:
            os._exit(0)
        self.left = int(line)
        self.started, self.used = time.perf_counter(), time.process_time()


@dataclass
class Player:
    """The measuring side of a worker; `first` are its seconds from the start to a first step."""

    name: str
    process: subprocess.Popen[str]
    first: float = 0.0
    rates: list[float] = field(default_factory=list)  # steps a second, by turn
    used: list[float] = field(default_factory=list)  # the processor's seconds of a step

    @classmethod
    def start(cls, name: str, command: Sequence[str], log: Path, folder: Path) -> Player:
        """Start it, and wait for its first step."""
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        begun = time.perf_counter()
        with open(log, "w") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
                env=env,
            )
        player = cls(name, process)
        player.answer()
        player.first = time.perf_counter() - begun
        return player

    def answer(self) -> tuple[float, float]:
        """The seconds that it says, passed and the processor's; an error where it ended."""
        line = pipe(self.process.stdout).readline()
        if not line:
            sys.exit(f"{self.name} ended with status {self.process.wait()}; see its log")
        passed, used = map(float, line.split())
        return passed, used

    def play(self, steps: int) -> None:
        """A turn of so many steps."""
        print(steps, file=pipe(self.process.stdin), flush=True)
        passed, used = self.answer()
        self.rates.append(steps / passed)
        self.used.append(used / steps)

    def megabytes(self) -> float:
        """The most that the process and those it started have held (VmHWM, Linux alone): pages that
        several of them share count in each.
        """
        return sum(_held(pid) for pid in _tree(self.process.pid)) / 1024

    def end(self) -> None:
        """Let it end."""
        pipe(self.process.stdin).close()
        self.process.wait()


def pipe(stream: TextIO | None) -> TextIO:
    """A pipe that is there."""
    assert stream is not None
    return stream


def _held(pid: int) -> int:
    """Kilobytes; 0 of a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _tree(pid: int) -> list[int]:
    """A process, and all below it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        below = [int(n) for task in tasks for n in (task / "children").read_text().split()]
    except OSError:
        below = []
    return [pid, *(each for child in below for each in _tree(child))]


def play(
    players: Sequence[Player], ours: str, unit: str, size: int, rounds: int, seconds: float
) -> None:
    """So many rounds, forwards and backwards, of about `seconds` each; a JSON line for each turn,
    and a table of rates in `unit` (`size` a step) and of the most memory that each has held.
    """
    lengths = {}
    for player in players:  # to warm up, and to learn how long a step takes
        player.play(3)
        lengths[player.name] = max(2, round(seconds * player.rates.pop()))
        player.used.pop()
    for number in range(rounds):
        for player in players if number % 2 == 0 else reversed(players):
            player.play(lengths[player.name])
            line = {
                "name": player.name,
                "round": number,
                f"{unit}_per_second": round(size * player.rates[-1], 1),
                "processor_ms_per_step": round(1e3 * player.used[-1], 3),
            }
            print(json.dumps(line), flush=True)
    mine = next(player for player in players if player.name == ours)
    print(
        f"\n| | {unit}/s, median (best) | {ours} is faster: median (each round) | by the"
        " processor's time | first step | memory |"
    )
    print("|---|---|---|---|---|---|")
    for player in players:
        ratios = [a / b for a, b in zip(mine.rates, player.rates, strict=True)]
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        middle, best = (size * f(player.rates) for f in (statistics.median, max))
        print(
            f"| {player.name} | {middle:,.0f} ({best:,.0f}) | {statistics.median(ratios):.2f}"
            f" ({each}) | {statistics.median(player.used) / statistics.median(mine.used):.2f}"
            f" | {player.first:.1f} s | {player.megabytes():,.0f} MB |"
        )
        player.end()


def installed(folder: Path, wanted: Mapping[str, str]) -> Path:
    """The Python of an environment that has these packages ({module: what pip calls it}), and this
    Python's beside them.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        own = sysconfig.get_path("purelib", vars={"base": str(folder)})
        Path(own, "measured.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for module, package in wanted.items():
        there = subprocess.run(
            [python, "-c", f"import importlib.util as u; assert u.find_spec('{module}')"],
            capture_output=True,
            check=False,
        )
        if there.returncode:
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    return python
