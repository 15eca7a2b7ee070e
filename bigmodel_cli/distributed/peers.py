"""What the processes of one training say to one another beside tensors: values, faults, signals.

A thread in each process holds the lines (lines.py) and hears what the main thread cannot, since
that may wait in an exchange of tensors for a process that is gone. It knows at once when a process
dies, after `limit` seconds when one hangs, and ends this one where the main thread does not.

**Stopping.** A signal may reach one process, or all, at any moment; and they have to stop at the
same step, or those that go on wait for ever. Each step begins at a `gate`, of which each process
counts those that it has passed. Who gets a signal tells the first process; that asks all others how
many gates they have passed, which holds them where they are; all go on up to the largest number of
them, and stop before the next.
"""

from __future__ import annotations

import contextlib
import json
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
from bigmodel_cli.errors import BigmodelError, ProcessError

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


class Peers:
    """This process among the others: `lines` to all of them in the first, else to the first."""

    def __init__(self, rank: int, size: int, lines: dict[int, Line], limit: float) -> None:
        self.rank, self.size, self.lines, self.limit = rank, size, lines, limit
        self.changed = threading.Condition()
        self.outbox: deque[tuple[int, Message]] = deque()
        self.woken, self.waker = os.pipe()
        os.set_blocking(self.waker, False)
        self.exchanges = 0  # that the main thread began
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

    # What the main thread calls

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in each of them; a value is what JSON can hold."""
        number = self._begin()
        if not self.first:
            self._post(0, {"kind": "value", "number": number, "value": value})
            return list(self._answer(number))
        self._wait(lambda: len(self.values.get(number, {})) == self.size - 1)
        found = self.values.pop(number)
        every = [value, *(found[rank] for rank in range(1, self.size))]
        self._post(ALL, {"kind": "values", "number": number, "value": every})
        return every

    def told(self, value: Any) -> Any:
        """The first process's value in all of them."""
        number = self._begin()
        if not self.first:
            return self._answer(number)
        self._post(ALL, {"kind": "values", "number": number, "value": value})
        return json.loads(json.dumps(value))

    def gate(self) -> tuple[int, bool] | None:
        """Pass a gate. The signal that stops the run, and whether it stops before this gate, else
        before the next; None where nothing stops it.
        """
        with self.changed:
            while self.signal is not None and self.stop_at is None:
                self._raise_fault()
                self.changed.wait(BEATS)
            if self.stop_at is not None and self.passed >= self.stop_at:
                assert self.signal is not None
                return self.signal, True
            self.passed += 1
            if self.stop_at is not None and self.passed >= self.stop_at:
                assert self.signal is not None
                return self.signal, False
            return None

    def signalled(self, number: int) -> None:
        """A signal has come; safe in a signal handler."""
        with contextlib.suppress(OSError):
            os.write(self.waker, bytes([number]))

    def settle(self, error: BaseException, status: int, stopped: bool) -> BaseException:
        """The main thread ends by an error: what the run as a whole ends by.

        That another process has died shows here as an error of the exchange of tensors.
        """
        with self.changed:
            self.leaving = True
            of_exchange = isinstance(error, RuntimeError) and not isinstance(error, BigmodelError)
            if of_exchange:
                self._wait_until(lambda: self.fault is not None, 3 * GRACE)
            fault, own = self.fault, stopped and self.first
            if fault is not None and not fault.lost and isinstance(error, BigmodelError):
                own = own or fault.status == status  # the same in all of them
            if fault is not None and not own:
                return ProcessError(fault.message, fault.status)
        if of_exchange and any(word in str(error) for word in ("gloo", "NCCL", "c10d", "peer")):
            line = str(error).strip().splitlines()[0][:300]
            return ProcessError(
                f"the processes could not exchange their tensors within train.timeout"
                f" {self.limit:g} s: {line}"
            )
        if not self.first and not stopped:
            self._post(0, {"kind": "fault", "status": status, "message": str(error)[:10_000]})
        return error

    def end(self, status: int, message: str, stopped: bool = False) -> Fault | None:
        """The first process tells the others how the run ends; they wait for it, and return it."""
        with self.changed:
            self.leaving = self.ended = True
            if not self.first:
                self._wait_until(
                    lambda: self.fault is not None, None if not status or stopped else LAST
                )
                return self.fault
        self._post(ALL, {"kind": "end", "status": status, "message": message})
        with self.changed:
            self._wait_until(lambda: not self.outbox, 1.0)
        return None

    def close(self) -> None:
        """Part from the others."""
        self.closed = True
        self._wake()
        self.thread.join()
        for line in self.lines.values():
            line.close()
        os.close(self.woken)
        os.close(self.waker)

    def _begin(self) -> int:
        self.exchanges += 1
        return self.exchanges

    def _answer(self, number: int) -> Any:
        self._wait(lambda: ALL in self.values.get(number, {}))
        return self.values.pop(number)[ALL]

    def _wait(self, met: Callable[[], bool]) -> None:
        """Wait for others as long as they live. Raises `ProcessError`."""
        with self.changed:
            while not met():
                self._raise_fault()
                self.changed.wait(BEATS)

    def _wait_until(self, met: Callable[[], bool], seconds: float | None) -> None:
        self.changed.wait_for(met, seconds)

    def _raise_fault(self) -> None:
        if self.fault is not None:
            raise ProcessError(self.fault.message, self.fault.status)

    def _post(self, to: int, message: Message) -> None:
        with self.changed:
            self.outbox.append((to, message))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self.waker, b"\0")

    # What the thread does

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
