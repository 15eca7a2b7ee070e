"""`--processes N`: start the processes of a run on this machine, and end as the run does.

What `torchrun --standalone` does, with what that lacks: a signal's save may take as long as it
takes, each process's end is known, so that the exit status is the run's own, and torch is not
imported here. Several machines are torchrun's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from bigmodel_cli.distributed import LISTENING
from bigmodel_cli.distributed.who import MOST_PROCESSES
from bigmodel_cli.errors import ProcessError, SpecError

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AFTER_ONE, AFTER_FIRST = 10.0, 2.0
"""Seconds in which the others end by themselves after one process has failed, or the first."""
LOOK = 0.02
"""Seconds between looks at the processes."""


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


def launch(words: Sequence[str], processes: int, restarts: int, say: Callable[[str], None]) -> int:
    """Run `bigmodel WORDS` in so many processes, and return the run's exit status.

    Where a process is lost, all are started again, up to `restarts` times; they go on with the run.
    Raises `SpecError` for a number that is not one.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise SpecError(f"--processes {processes}: from 1 to {MOST_PROCESSES:,}")
    name = secrets.token_hex(8)
    for attempt in range(restarts + 1):
        group = Group(words, processes, name, attempt)
        with group.forwarding():
            status = group.wait()
        if status != ProcessError.status or attempt == restarts or group.signalled:
            break
        say(f"starting the processes again ({attempt + 1} of {restarts} times)")
    return status


class Group:
    """The processes of one attempt."""

    def __init__(self, words: Sequence[str], processes: int, name: str, attempt: int) -> None:
        self.signalled = False
        with socket.create_server(("127.0.0.1", 0), backlog=processes) as server:
            common = {
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(server.getsockname()[1]),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "TORCHELASTIC_RUN_ID": name,
                "TORCHELASTIC_RESTART_COUNT": str(attempt),
            }
            self.processes = [
                self._start(words, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, server)
                for rank in range(processes)
            ]

    def _start(
        self, words: Sequence[str], environment: dict[str, str], server: socket.socket
    ) -> subprocess.Popen[bytes]:
        """A process of its own group, so that a terminal's Ctrl-C comes once, from here."""
        first = environment["RANK"] == "0"
        if first:
            environment[LISTENING] = str(server.fileno())
        return subprocess.Popen(
            [sys.executable, "-m", "bigmodel_cli", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
            pass_fds=[server.fileno()] if first else [],
        )

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[None]:
        """Inside, signals that stop a run go to its processes."""

        def forward(number: int, frame: FrameType | None) -> None:
            self.signalled = True
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

    def wait(self) -> int:
        """The status of the first process, when all have ended; 7 where it was killed.

        After one has failed the others have a while to end, and are killed then.
        """
        failed = 0.0
        while None in (codes := [process.poll() for process in self.processes]):
            if not failed and any(codes):
                failed = time.monotonic()
            patience = AFTER_ONE if codes[0] is None else AFTER_FIRST
            if failed and time.monotonic() > failed + patience:
                for process in self.processes:
                    if process.poll() is None:
                        process.kill()
            time.sleep(LOOK)
        ended = [process.wait() for process in self.processes]
        if ended[0] >= 0:
            return ended[0]
        return max((code for code in ended if code > 0), default=ProcessError.status)
