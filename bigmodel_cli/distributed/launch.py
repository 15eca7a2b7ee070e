"""`--processes N`: start the processes of a run on this machine, and end as the run does.

What `torchrun --standalone` does, with what that lacks: a signal's save may take as long as it
takes, each process's end is known, so that the exit status is the run's own, and torch is not
imported here. Several machines are torchrun's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from bigmodel_cli.distributed import LISTENING, MET
from bigmodel_cli.distributed.who import MOST_PROCESSES
from bigmodel_cli.errors import ProcessError, SpecError

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AFTER_ONE, AFTER_FIRST = 10.0, 2.0
"""Seconds in which the others end by themselves after one process has failed, or the first."""
LOOK, WATCH = 0.02, 0.5
"""Seconds between looks at the processes, and of a process at its launcher."""
LAUNCHER = "BIGMODEL_LAUNCHER"
"""The number of the process that started this one, and without which it is to stop."""
_PR_SET_PDEATHSIG = 1


def stop_with_launcher() -> None:
    """From here on this process gets SIGTERM when its launcher has died: nobody waits for it."""
    launcher = os.environ.pop(LAUNCHER, None)
    if launcher is None:
        return
    number = int(launcher)
    if not (sys.platform == "linux" and _told_of_death()):
        threading.Thread(target=_watch, args=(number,), name="launcher", daemon=True).start()
    if os.getppid() != number:  # it died before
        os.kill(os.getpid(), signal.SIGTERM)


def _told_of_death() -> bool:
    """Whether Linux sends SIGTERM when the parent dies."""
    try:
        return not int(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0))
    except (OSError, AttributeError):
        return False


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(WATCH)
    os.kill(os.getpid(), signal.SIGTERM)


def without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words of a command line without these options, each of which has a value."""
    left, skipping = list[str](), False
    for word in words:
        if skipping:
            skipping = False
        elif word in names:
            skipping = True
        elif word.partition("=")[0] not in names:
            left.append(word)
    return left


def launch(
    words: Sequence[str],
    processes: int,
    restarts: int,
    say: Callable[[str], None],
    *,
    reads: bool = False,
) -> int:
    """Run `bigmodel WORDS` in so many processes, and return the run's exit status.

    Where a process is lost, all are started again, up to `restarts` times; they go on with the run.
    With `reads` the first one has stdin, which is not to be a terminal: only its foreground reads
    that. Raises `SpecError` for a number that is not one.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise SpecError(f"--processes {processes}: from 1 to {MOST_PROCESSES:,}")
    name = secrets.token_hex(8)
    for attempt in range(restarts + 1):
        group = Group(words, processes, name, attempt, say, reads=reads)
        with group.forwarding():
            status = group.wait()
        if status != ProcessError.status or attempt == restarts or group.signalled:
            break
        say(f"starting the processes again ({attempt + 1} of {restarts} times)")
    return status


class Group:
    """The processes of one attempt."""

    def __init__(
        self,
        words: Sequence[str],
        processes: int,
        name: str,
        attempt: int,
        say: Callable[[str], None],
        *,
        reads: bool = False,
    ) -> None:
        self.signalled = 0  # the last signal that came
        self.say, self.reads = say, reads
        self.met, self.meeting = os.pipe()  # the first process writes into it
        os.set_blocking(self.met, False)
        with socket.create_server(("127.0.0.1", 0), backlog=processes) as server:
            common = {
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(server.getsockname()[1]),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "TORCHELASTIC_RUN_ID": name,
                "TORCHELASTIC_RESTART_COUNT": str(attempt),
                LAUNCHER: str(os.getpid()),
            }
            self.processes = [
                self._start(words, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, server)
                for rank in range(processes)
            ]
        os.close(self.meeting)

    def _start(
        self, words: Sequence[str], environment: dict[str, str], server: socket.socket
    ) -> subprocess.Popen[bytes]:
        """A process of its own group, so that a terminal's Ctrl-C comes once, from here."""
        first = environment["RANK"] == "0"
        if first:
            environment |= {LISTENING: str(server.fileno()), MET: str(self.meeting)}
        return subprocess.Popen(
            [sys.executable, "-m", "bigmodel_cli", *words],
            env=environment,
            stdin=None if first and self.reads else subprocess.DEVNULL,
            process_group=0,
            pass_fds=[server.fileno(), self.meeting] if first else [],
        )

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[None]:
        """Inside, signals that stop a run go to its processes."""

        def forward(number: int, frame: FrameType | None) -> None:
            self.signalled = number
            for process in self.processes:
                process.send_signal(number)

        before: dict[int, Any] = {}
        try:
            for number in HEEDED:
                if signal.getsignal(number) != signal.SIG_IGN:
                    before[number] = signal.signal(number, forward)
            yield
        finally:
            for ended, handler in before.items():
                signal.signal(ended, handler)
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
            os.close(self.met)

    def wait(self) -> int:
        """The status of the first process, when all have ended; 7 where it was killed.

        After one has failed the others have a while to end, and are killed then.
        """
        failed, met = 0.0, False
        while None in (codes := [process.poll() for process in self.processes]):
            met = met or self._has_met()
            if not failed and any(codes):
                failed = time.monotonic()
            patience = AFTER_ONE if codes[0] is None else AFTER_FIRST
            if not (met or self.signalled) and _killed(codes) is not None:
                patience = 0.0  # none of the others knows of it
            if failed and time.monotonic() > failed + patience:
                for process in self.processes:
                    if process.poll() is None:
                        process.kill()
                break
            time.sleep(LOOK)
        ended = [process.wait() for process in self.processes]
        if self.signalled and ended[0] == -self.signalled:
            return 128 + self.signalled
        if not (met or self._has_met() or self.signalled) and (lost := _killed(codes)) is not None:
            self.say(
                f"bigmodel: process {lost} of {len(codes)} was killed before the processes had"
                " found one another; start them again"
            )
            return ProcessError.status
        if ended[0] >= 0:
            return ended[0]
        return max((code for code in ended if code > 0), default=ProcessError.status)

    def _has_met(self) -> bool:
        """Whether the first process has found all others, which then know of each one's end."""
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self.met, 1))
        return False


def _killed(codes: Sequence[int | None]) -> int | None:
    """The first process that a signal ended."""
    return next((rank for rank, code in enumerate(codes) if (code or 0) < 0), None)
