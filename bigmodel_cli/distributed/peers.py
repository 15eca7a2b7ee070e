"""What the processes of one training say to one another beside tensors: values, faults, signals.

A thread in each process holds the lines (lines.py) and hears what the main thread cannot, since
that may wait in an exchange of tensors for a process that is gone. It knows at once when a process
dies, after `limit` seconds when one hangs, and ends this one where the main thread does not.

**Stopping.** A signal may reach one process, or all, at any moment; and they have to stop at the
same place, or those that go on wait for ever. Each step begins at a `gate`, and so does what comes
after it (a validation, a save); each process counts the gates that it has passed. Who gets a signal
tells the first process; that asks all others how many gates they have passed, which holds them
where they are; all go on up to the largest number of them, and stop before the next.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

from bigmodel_cli.distributed.watching import ALL, AT_ONCE, BEATS, GRACE, LAST, Fault, Watching
from bigmodel_cli.errors import BigmodelError, ProcessError

__all__ = ["AT_ONCE", "Fault", "Peers"]


class Peers(Watching):
    """This process among the others: what its main thread says and asks."""

    def gathered(self, value: Any, *, aside: bool = False) -> list[Any]:
        """The values of all processes, by rank, in each of them; a value is what JSON can hold.

        Exchanges `aside`, of a second thread of each process, have numbers of their own.
        """
        number = self._begin(aside)
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

    def _begin(self, aside: bool = False) -> int:
        if aside:
            self.exchanges_aside -= 1
            return self.exchanges_aside
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
