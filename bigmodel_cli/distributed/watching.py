"""The thread of `Peers` (peers.py): it holds the lines, and hears what the main thread cannot."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.distributed.lines import Line, Message
from bigmodel_cli.errors import ProcessError

ALL = -1
BEATS = 1.0
"""Seconds between signs of life, where the limit is not short."""
GRACE, LONG_GRACE, LAST = 1.0, 4.0, 60.0
"""Seconds in which the main thread may end by itself after another's death; after another's fault,
which it perhaps has too, or a signal with nothing to save; and while it is ending already.
"""
AT_ONCE = 255
"""Instead of a signal's number: leave without another word."""


@dataclass(frozen=True)
class Fault:
    """How a run ends: of which process it is, the exit status, and a message."""

    rank: int
    status: int
    message: str
    lost: bool = False  # it could not say so itself


class Watching:
    """This process among the others: `lines` to all of them in the first, else to the first."""

    def __init__(self, rank: int, size: int, lines: dict[int, Line], limit: float) -> None:
        self.rank, self.size, self.lines, self.limit = rank, size, lines, limit
        self.changed = threading.Condition()
        self.outbox: deque[tuple[int, Message]] = deque()
        self.woken, self.waker = os.pipe()
        os.set_blocking(self.waker, False)
        self.exchanges = 0  # that the main thread began
        self.exchanges_aside = 0  # minus those of a second thread
        self.values: dict[int, dict[int, Any]] = {}  # of each exchange, by rank; -1: the answer
        self.passed = 0  # gates
        self.at: dict[int, int] = {}  # those that each process had passed
        self.signal: int | None = None  # that is to stop the run
        self.stop_at: int | None = None  # the gate before which all stop
        self.poked = False  # the signal that comes next is our own
        self.nothing_to_save = True
        self.fault: Fault | None = None  # of another process, or the end of the first
        self.since = 0.0  # when that, or the decision to stop, was known
        self.leaving = False  # the main thread is ending the process
        self.ended = False  # the others may go
        self.closed = False
        self.on_end: Callable[[Fault], None] = lambda fault: None
        self.at_once: Callable[[], None] = lambda: None
        self.main = threading.main_thread().ident or 0
        self.thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self.thread.start()

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def _post(self, to: int, message: Message) -> None:
        with self.changed:
            self.outbox.append((to, message))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self.waker, b"\0")

    def _watch(self) -> None:
        beat = min(BEATS, self.limit / 5)
        selector = selectors.DefaultSelector()
        selector.register(self.woken, selectors.EVENT_READ, None)
        for rank, line in self.lines.items():
            selector.register(line.connection, selectors.EVENT_READ, rank)
        due = time.monotonic()
        while not self.closed:
            for key, _ in selector.select(beat / 2):
                if key.data is None:
                    for number in os.read(self.woken, 100):
                        self._on_signal(number)
                    continue
                messages = self.lines[key.data].receive()
                if messages is None:
                    selector.unregister(key.fileobj)
                    self._on_gone(key.data)
                for message in messages or ():
                    self._hear(key.data, message)
            if (now := time.monotonic()) >= due:
                if now > due + self.limit / 2:  # it was this process that stood still
                    for line in self.lines.values():
                        line.heard = now
                due = now + beat
                self._send(ALL, {"kind": "beat"})
            self._send_posted()
            self._look_for_silence()
            self._end_if_main_does_not()
        self._send_posted()

    def _send_posted(self) -> None:
        while self.outbox:
            self._send(*self.outbox[0])
            with self.changed:
                self.outbox.popleft()
                self.changed.notify_all()

    def _send(self, to: int, message: Message) -> None:
        for rank, line in self.lines.items():
            if to in (ALL, rank):
                line.send(message)

    def _on_signal(self, number: int) -> None:
        if not number:  # only woken
            return
        if number == AT_ONCE:
            self._send(ALL, {"kind": "at once"})
            self._leave_at_once()
        elif self.first:
            self._halt(number)
        else:
            self._send(0, {"kind": "signal", "number": number})

    def _halt(self, number: int) -> None:
        """The first process: the run is to stop; ask where the others are."""
        with self.changed:
            if self.signal is None:
                self.signal, self.at[0] = number, self.passed
                self._send(ALL, {"kind": "halt", "number": number})

    def _stop(self, gate: int) -> None:
        """It is known before which gate all stop."""
        self.stop_at, self.since = gate, time.monotonic()
        if self.passed >= gate:
            self.poked = True
            signal.pthread_kill(self.main, signal.SIGTERM)

    def _hear(self, rank: int, message: Message) -> None:
        kind = message.get("kind")
        with self.changed:
            if kind in ("value", "values"):
                place = self.values.setdefault(message["number"], {})
                place[rank if kind == "value" else ALL] = message["value"]
            elif kind == "signal":
                self._halt(message["number"])
            elif kind == "halt":
                self.signal = message["number"]
                self._send(0, {"kind": "at", "gates": self.passed})
            elif kind == "at":
                self.at[rank] = message["gates"]
                if len(self.at) == self.size:
                    self._send(ALL, {"kind": "stop", "gate": max(self.at.values())})
                    self._stop(max(self.at.values()))
            elif kind == "stop":
                self._stop(message["gate"])
            elif kind == "fault":
                what = f"process {rank} of {self.size}: {message['message']}"
                self._found(Fault(rank, message["status"], what))
            elif kind == "end":
                self._found(Fault(rank, message["status"], message["message"]))
            elif kind == "at once":
                self._send(ALL, message)
                self._leave_at_once()
            self.changed.notify_all()

    def _found(self, fault: Fault) -> None:
        if self.fault is None:
            self.fault, self.since = fault, time.monotonic()

    def _on_gone(self, rank: int) -> None:
        """A process closed its line: after the end as it should, else it is dead."""
        with self.changed:
            if not (self.ended and self.first):
                what = f"process {rank} of {self.size} is gone (killed, or its machine failed)"
                self._found(Fault(rank, ProcessError.status, what, lost=True))
            self.changed.notify_all()

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        for rank, line in self.lines.items():
            if now - line.heard > self.limit and self.fault is None:
                if self.ended and self.first:
                    return
                what = (
                    f"process {rank} of {self.size} has given no sign of life for"
                    f" {self.limit:g} s (train.timeout)"
                )
                with self.changed:
                    self._found(Fault(rank, ProcessError.status, what, lost=True))
                    self.changed.notify_all()

    def _end_if_main_does_not(self) -> None:
        """End the process where the main thread waits for what will not come."""
        with self.changed:
            waited = time.monotonic() - self.since
            fault = self.fault
            if fault is None:
                stuck = self.stop_at is not None and self.nothing_to_save and self.first
                if not stuck or waited < LONG_GRACE or self.leaving:
                    return
                assert self.signal is not None
                fault = Fault(0, 128 + self.signal, "stopped")
            else:
                patience = LAST if self.leaving else GRACE if fault.lost else LONG_GRACE
                if waited < patience or (self.first and self.leaving):
                    return
            self.leaving = True
        if self.first:
            self._send(ALL, {"kind": "end", "status": fault.status, "message": fault.message})
        if self.first or self.speaks_for_first(fault):
            self.on_end(fault)
        os._exit(fault.status)

    def speaks_for_first(self, fault: Fault) -> bool:
        """Whether this process says that the first is gone, which cannot."""
        return self.rank == 1 and fault.lost and fault.rank == 0

    def _leave_at_once(self) -> None:
        if self.first:
            with contextlib.suppress(Exception):
                self.at_once()
        os._exit(128 + signal.SIGINT)
