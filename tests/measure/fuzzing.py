"""The engine of the fuzzers: cases by seed, in forked processes, under limits of time and memory.

A case is a function of its seed alone, so that a fault is repeated by its seed. The parent imports
and warms up what the cases need, and forks a process for each few hundred of them; each case runs
in that process, without a start-up of its own. A case that crashes it, or that no signal can end,
is a fault of its seed, and the next process goes on behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 5.0
"""Of the processor, that a case may take."""
WALL = 40.0
"""Seconds after which a case hangs: more, since other work may slow it down."""
BYTES = 500 << 20
"""Of memory that a case may take above what the process had before its first."""
ADDRESSES = 4 << 30
"""Bytes of addresses beyond those of the start; what asks for more gets a MemoryError, and the
machine stays whole.
"""
CHUNK = 250
"""Cases of one process."""
LONGEST = 20_000
"""Characters that a message may have."""


class HangError(BaseException):
    """A case that does not end."""


@dataclass
class Trial:
    """A case: its kind, the call that gives its exit status, the statuses that are right, and a
    check of what it wrote.
    """

    kind: str
    call: Callable[[], int]
    allowed: Sequence[int]
    check: Callable[[int, str], str] = field(default=lambda status, written: "")


@dataclass
class Outcome:
    """How a case ended; `fault` is "" where that is as it should be."""

    seed: int
    kind: str = ""
    status: int | None = None
    seconds: float = 0.0
    bytes: int = 0
    fault: str = ""
    message: str = ""


class Campaign:
    """Runs cases, and keeps how they ended."""

    def __init__(self, case: Callable[[int], Trial], folder: Path) -> None:
        self.case, self.folder = case, folder
        self.outcomes: list[Outcome] = []

    def run(
        self, seeds: Sequence[int], tell: Callable[[str], None] = lambda text: None
    ) -> list[Outcome]:
        """Run the case of each seed, and return those that are at fault."""
        waiting = list(seeds)
        while waiting:
            chunk, waiting = waiting[:CHUNK], waiting[CHUNK:]
            done = self._forked(chunk)
            waiting = chunk[len(done) :] + waiting
            self.outcomes += done
            tell("".join(f"seed {o.seed} ({o.kind}): {o.fault}\n" for o in done if o.fault))
            tell(f"{len(self.outcomes):,} of {len(seeds):,}; {len(self.faults)} at fault")
        return self.faults

    @property
    def faults(self) -> list[Outcome]:
        """What was at fault."""
        return [o for o in self.outcomes if o.fault]

    def _forked(self, seeds: Sequence[int]) -> list[Outcome]:
        """The outcomes of one process; fewer than there are seeds where one of them killed it."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._child(seeds, writing)
        os.close(writing)
        lines = list(_lines(reading, 2 * WALL))
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        outcomes = [Outcome(**json.loads(line)) for line in lines if line]
        if len(outcomes) < len(seeds):
            seed = seeds[len(outcomes)]
            number = os.waitstatus_to_exitcode(status)
            how = (
                "no end, and no signal ends it"
                if number == -signal.SIGKILL
                else f"the process died ({number})"
            )
            written = (self.folder / "stream2").read_text(errors="backslashreplace")
            outcomes.append(Outcome(seed, "died", None, fault=how, message=written[-400:]))
        return outcomes

    def _child(self, seeds: Sequence[int], writing: int) -> None:
        """Run the cases, a line for each; never returns."""
        try:
            os.setsid()
            os.chdir(self.folder)
            # HOME is what ~ stands for
            os.environ.update(
                TOKENIZERS_PARALLELISM="false",
                HOME=str(self.folder),
                XDG_CACHE_HOME=str(self.folder / "cache"),
            )
            for number in (1, 2):
                os.dup2(
                    os.open(
                        self.folder / f"stream{number}",
                        os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND,
                    ),
                    number,
                )
            sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
            os.fsync = lambda descriptor: None  # nothing of a case is to outlast a power cut
            signal.signal(signal.SIGALRM, _hang)
            size = _memory("VmSize") + ADDRESSES
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            floor = _memory("VmRSS")
            for seed in seeds:
                os.write(writing, json.dumps(asdict(self._measured(seed, floor))).encode() + b"\n")
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(0)

    def _measured(self, seed: int, floor: int) -> Outcome:
        for number in (1, 2):
            os.ftruncate(number, 0)
        trial = self.case(seed)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        outcome = Outcome(seed, trial.kind)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, WALL)
        try:
            try:
                outcome.status = trial.call()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except HangError as error:
            outcome.fault = f"hangs for {WALL:.0f} s at {_place(error)}"
        except BaseException as error:
            outcome.status = 1
            outcome.fault = f"{type(error).__name__} at {_place(error)}"
            outcome.message = str(error)[:300]
        outcome.seconds = round(time.process_time() - start, 3)
        outcome.bytes = _memory("VmHWM") - floor
        written = Path(self.folder / "stream2").read_text(
            encoding="utf-8", errors="backslashreplace"
        )
        outcome.message = outcome.message or written[-400:]
        outcome.fault = outcome.fault or _judged(outcome, trial, written)
        return outcome


def _judged(outcome: Outcome, trial: Trial, written: str) -> str:
    """What is wrong with how a case ended; "" where nothing is."""
    if outcome.status not in trial.allowed:
        return f"status {outcome.status}"
    if "Traceback (most recent call last)" in written or "panicked at" in written:
        return "a traceback"
    if outcome.seconds > SECONDS:
        return f"takes more than {SECONDS:.0f} s"
    if outcome.bytes > BYTES:
        return f"takes more than {BYTES >> 20} MiB"
    if outcome.status and not written.strip():
        return "no message"
    if len(written) > LONGEST:
        return f"a message of more than {LONGEST:,} characters"
    if raw := re.search(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]", written):
        return f"a raw control character ({raw[0]!a})"
    return trial.check(int(outcome.status or 0), written)


def _hang(number: int, frame: Any) -> None:
    raise HangError


def _place(error: BaseException) -> str:
    """Where an error was raised: the last place in the program itself, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "bigmodel_cli" in f.filename] or frames
    places = dict.fromkeys(
        f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno}" for f in (own[-1], frames[-1])
    )
    return " > ".join(places)


def _memory(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


def _lines(descriptor: int, timeout: float) -> Iterator[bytes]:
    """The lines that come through a pipe until its end, or until none comes for so many seconds."""
    rest = b""
    while select.select([descriptor], [], [], timeout)[0]:
        content = os.read(descriptor, 1 << 16)
        if not content:
            return
        *whole, rest = (rest + content).split(b"\n")
        yield from whole


def table(outcomes: Sequence[Outcome]) -> str:
    """Of each kind: how many cases, their statuses, the slowest, the most memory, the faults."""
    rows = []
    for kind in [*sorted({o.kind for o in outcomes}), "all"]:
        those = [o for o in outcomes if kind in ("all", o.kind)]
        statuses = Counter(str(o.status) for o in those)
        shown = " ".join(f"{status}:{count:,}" for status, count in sorted(statuses.items()))
        slowest, most = max(o.seconds for o in those), max(o.bytes for o in those)
        faults = sum(bool(o.fault) for o in those)
        rows.append(
            [
                kind,
                f"{len(those):,}",
                shown,
                f"{slowest:.2f} s",
                f"{most / 2**20:.0f} MiB",
                f"{faults:,}",
            ]
        )
    rows.insert(0, ["kind", "cases", "status:cases", "slowest", "most memory", "faults"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def described(faults: Sequence[Outcome], most: int = 8) -> str:
    """The faults by what they are, each with some of its seeds and a message."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in faults:
        groups.setdefault(outcome.fault, []).append(outcome)
    return "\n".join(
        f"{len(those):5} x {what}\n        seeds"
        f" {' '.join(f'{o.seed} ({o.kind})' for o in those[:most])}\n       "
        f" {those[0].message.strip()[-300:]!r}"
        for what, those in sorted(groups.items(), key=lambda item: -len(item[1]))
    )


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[None]:
    """What is written within goes to a file."""
    with (
        open(path, "a", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def main(about: str, count: int, campaign: Callable[[Path], Campaign]) -> None:
    """Run a fuzzer from the command line: prints the table, and leaves with 1 and the seeds of
    faults where there are any.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--count", type=int, default=count, help="how many cases")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, nargs="*", help="these alone, to repeat a fault")
    parser.add_argument("--keep", type=Path, help="work in this folder, and keep it")
    chosen = parser.parse_args()
    root = chosen.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder = root / "in" / "side"  # so that .. and what may be beside it belong to the cases
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()

    def tell(text: str) -> None:
        if text:
            print(f"{time.monotonic() - start:.0f} s: {text.strip()}", file=sys.stderr, flush=True)

    try:
        runner = campaign(folder.resolve())
        tell("ready")
        seeds = chosen.seeds or range(chosen.first, chosen.first + chosen.count)
        faults = runner.run(seeds, tell)
    finally:
        if chosen.keep is None:
            shutil.rmtree(root)
    if chosen.seeds:
        for outcome in runner.outcomes:
            print(json.dumps(asdict(outcome)))
    print(table(runner.outcomes))
    print(f"{time.monotonic() - start:.0f} s in all")
    if faults:
        print(described(faults))
        sys.exit(1)
