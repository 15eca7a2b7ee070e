"""A storm of kill -9 over four families of runs: what is resumed must end, to the bit, as the run
that nobody disturbed.

    python tests/measure/kills.py [--kills 1000] [--seed 0] [--jobs 2] [--data DATA] [--only FAMILY]
    [--folder DIR] python tests/measure/kills.py --repeat decoder:17          # run 17 of that
    family again, with the same kills

A run is killed up to six times and resumed each time: three kills of ten inside a save (a failpoint
between two of its system calls), two the whole process group with the loader's workers, one after a
SIGTERM, in what that does, and the others at a random moment. Half of the runs begin with an empty
cache. Compared are the contents of `last` and `best`, all of metrics.jsonl but its clock, and the
status; nothing half written and no process may be left. The status is 1 where a run differs.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NoReturn

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from measure.families import (  # noqa: E402
    FAMILIES,
    differences,
    drafts,
    fingerprint,
    kept,
    orphans,
    write_data,
)
from zygote import Child, Ended, Zygote  # noqa: E402

SHARES = {"save": 0.3, "group": 0.2, "stop": 0.1, "moment": 0.4}
"""How a kill is made, and how many of them are of each kind."""
MOST_KILLS = 6
POINTS = {
    "write": 14,
    "wrote": 14,
    "synced": 14,
    "rename": 2,
    "renamed": 2,
    "marked": 3,
    "prune": 6,
}
"""The places in a save, and up to the how-manieth time one is reached before the process dies
there.
"""
LOCK_DIES = 20.0
"""Seconds within which the processes that a killed one leaves must be gone, and its lock with them.
"""


@dataclass
class Reference:
    """The run that nobody disturbed."""

    seconds: float
    fingerprint: dict[str, str]
    kept: str


@dataclass
class Outcome:
    """What became of a run."""

    kills: Counter[str] = field(default_factory=Counter)
    leaders: list[int] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    waited: float = 0.0  # seconds for the lock of a dead process


def undisturbed(zygote: Zygote, family: str, out: str) -> Reference:
    """Run a family to its end, twice: the second time, with everything prepared, is timed."""
    for name in (f"{out}-first", out):
        start = time.monotonic()
        ended = zygote.run("pretrain", f"{family}.yaml", "--out", name)
        assert ended.status == 0, ended.err
    return Reference(time.monotonic() - start, fingerprint(Path(out)), kept(Path(out)))


def start(zygote: Zygote, family: str, out: Path, env: dict[str, str]) -> Child:
    """Begin the run, or go on with it where its folder is there."""
    words = ["pretrain", f"{family}.yaml", "--out", out, *(["--resume"] if out.exists() else [])]
    return zygote.start(*words, env=env)


def send(child: Child, number: int, group: bool) -> None:
    """Send a signal to the process, or to its group, once it leads one."""
    while group:
        try:
            os.killpg(child.pid, number)
            return
        except ProcessLookupError:
            if child.ended():
                return
            time.sleep(0.001)
    child.send(number)


def kill_once(
    zygote: Zygote, family: str, out: Path, rng: random.Random, seconds: float, outcome: Outcome
) -> bool:
    """Let the run go on and kill it once.

    Returns whether it is to go on: False where it ended before.
    """
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    place, count = rng.choice([(p, rng.randint(1, n)) for p, n in POINTS.items()])
    moment, pause = rng.uniform(0, 0.8 * seconds), rng.uniform(0, 0.03)
    env = {"XDG_CACHE_HOME": str(out.parent / "cache")} if (out.parent / "cache").is_dir() else {}
    if kind == "save":
        env["BIGMODEL_FAILPOINT"] = f"checkpoint.{place}:kill:{count}"
    child = start(zygote, family, out, env)
    outcome.leaders.append(child.pid)
    if kind != "save":
        child.end_within(moment)
        if kind == "stop":
            send(child, signal.SIGTERM, rng.random() < 0.5)
            child.end_within(pause)
        send(child, signal.SIGKILL, kind == "group")
    ended = child.wait()
    outcome.plan.append(
        f"{kind} {env['BIGMODEL_FAILPOINT']}" if kind == "save" else f"{kind} after {moment:.3f} s"
    )
    if ended.status == -signal.SIGKILL:
        outcome.kills[kind] += 1
        return True
    return judged(ended, kind, outcome)


def judged(ended: Ended, kind: str, outcome: Outcome) -> bool:
    """Whether a run that ended by itself is to go on; an end that should not be is a fault."""
    if ended.status == 5 and "in use by process" in ended.err and outcome.waited < LOCK_DIES:
        outcome.waited += 0.25
        time.sleep(0.25)
        return True
    # the latter before the command has begun
    if kind == "stop" and ended.status in (
        143,
        -signal.SIGTERM,
    ):
        return True
    if ended.status != 0 or "Traceback" in ended.err:
        outcome.faults.append(f"ended with {ended.status}: {ended.err[-1500:]}")
    return False


def stormy(
    zygote: Zygote, family: str, out: Path, rng: random.Random, reference: Reference
) -> Outcome:
    """Kill a run several times, let it end, and compare it with the one that nobody disturbed."""
    outcome = Outcome()
    if rng.random() < 0.5:
        (out.parent / "cache").mkdir(parents=True)
    most = rng.randint(1, MOST_KILLS)
    while outcome.kills.total() < most and not outcome.faults:
        if not kill_once(zygote, family, out, rng, reference.seconds, outcome):
            break
    while not outcome.faults:
        ended = start(zygote, family, out, {}).wait()
        if not judged(ended, "", outcome):
            break
    if not outcome.faults:
        outcome.faults += compared(out, reference, "stop" in outcome.kills)
    return outcome


def compared(out: Path, reference: Reference, stopped: bool) -> list[str]:
    """How a run that has ended differs from the one that nobody disturbed; one that was stopped may
    keep other steps.
    """
    faults = [f"{name} differs" for name in differences(fingerprint(out), reference.fingerprint)]
    faults += [f"left behind: {name}" for name in drafts(out)]
    if not stopped and kept(out) != reference.kept:
        faults.append(f"keeps {kept(out)}, not {reference.kept}")
    return faults


@dataclass
class Storm:
    """The kills of one family, in runs that several threads take in turn, each with a parent of its
    own.
    """

    shares: ClassVar[dict[str, float]] = {
        kind: share for kind, share in SHARES.items() if kind != "stop"
    }
    disturb: ClassVar[Callable[[Zygote, str, Path, random.Random, Reference], Outcome]] = (
        staticmethod(stormy)
    )
    folder: Path
    family: str
    count: int
    seed: int
    reference: Reference
    total: Outcome = field(default_factory=Outcome)
    differing: list[str] = field(default_factory=list)
    runs: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self, zygote: Zygote) -> None:
        """Take runs until there were enough, of each kind."""
        while (number := self.next()) is not None:
            self.take(zygote, number)

    def next(self) -> int | None:
        """The number of the next run; None where there were kills enough."""
        with self.lock:
            kills = self.total.kills
            short = [
                kind
                for kind, share in self.shares.items()
                if kills[kind] < int(0.9 * share * self.count)
            ]
            if kills.total() >= self.count and not short:
                return None
            self.runs += 1
            return self.runs

    def take(self, zygote: Zygote, number: int) -> None:
        """Make the run with this number, and take note of it."""
        rng = random.Random(f"{self.seed} {self.family} {number}")
        folder = self.folder / f"{self.family}-{number}"
        outcome = type(self).disturb(zygote, self.family, folder / "run", rng, self.reference)
        with self.lock:
            self.total.kills += outcome.kills
            self.total.leaders += outcome.leaders
            self.total.waited = max(self.total.waited, outcome.waited)
            if outcome.faults:
                told = "\n  ".join([*outcome.plan, *outcome.faults])
                self.differing.append(
                    f"--seed {self.seed} --repeat {self.family}:{number}\n  {told}"
                )
                print(self.differing[-1], flush=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def row(self) -> str:
        """The family's part of the table."""
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.total.kills.items()))
        total, runs = self.total.kills.total(), self.runs
        return (
            f"{self.family:10}{total:8,}{runs:8,}{len(self.differing):11,}{self.total.waited:9.1f}"
            f" s   {kinds}"
        )


HEAD = f"{'family':10}{'number':>8}{'runs':>8}{'differing':>11}{'waited':>11}   of each kind"


def storm(
    zygotes: list[Zygote],
    folder: Path,
    family: str,
    count: int,
    seed: int,
    kind: type[Storm] = Storm,
) -> Storm:
    """Disturb runs of a family so many times, in the current folder, which holds the specs and the
    data.
    """
    found = kind(
        folder, family, count, seed, undisturbed(zygotes[0], family, f"{family}-undisturbed")
    )
    with ThreadPoolExecutor(len(zygotes)) as threads:
        for future in [threads.submit(found.work, zygote) for zygote in zygotes]:
            future.result()
    return found


def storms(
    about: str, kind: type[Storm], word: str, count: int, families: Iterable[str]
) -> NoReturn:
    """The command line of such a script: make the storms of all families, print the table, and
    leave.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(f"--{word}", dest="count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--data", type=Path, help="the real data sets")
    parser.add_argument("--only", choices=families)
    parser.add_argument("--repeat", help="FAMILY:NUMBER of a run that differed")
    parser.add_argument("--folder", type=Path, help="keep the runs that differ there")
    chosen = parser.parse_args()
    data = chosen.data.resolve() if chosen.data else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).resolve()
        zygotes = workplace(folder, data, chosen.jobs)
        if chosen.repeat:
            family, number = chosen.repeat.split(":")
            again = kind(
                folder,
                family,
                1,
                chosen.seed,
                undisturbed(zygotes[0], family, f"{family}-undisturbed"),
            )
            again.take(zygotes[0], int(number))
            sys.exit(bool(again.differing))
        names = [chosen.only] if chosen.only else list(families)
        began, leaders, failed = time.monotonic(), list[int](), False
        print(HEAD, flush=True)
        for family in names:
            found = storm(
                zygotes, folder, family, math.ceil(chosen.count / len(names)), chosen.seed, kind
            )
            leaders += found.total.leaders
            failed = failed or bool(found.differing)
            print(found.row(), flush=True)
        left = orphans(leaders)
        print(f"{len(left)} processes left; {time.monotonic() - began:.0f} s")
        sys.exit(failed or bool(left))


def workplace(folder: Path, data: Path | None, jobs: int) -> list[Zygote]:
    """Make `folder` the current one, with specs, data and a cache, and return the parents of the
    processes to come.
    """
    for name in ("cache", *(f"parent{n}" for n in range(jobs))):
        (folder / name).mkdir(parents=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    write_data(folder, data)
    return [Zygote(folder / f"parent{n}") for n in range(jobs)]


if __name__ == "__main__":
    storms(__doc__ or "", Storm, "kills", 1000, FAMILIES)
