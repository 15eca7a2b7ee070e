"""Stopping by a signal: finish the step, save a checkpoint, exit with 128 + the signal's number."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from bigmodel_cli.distributed.peers import AT_ONCE, Peers
from bigmodel_cli.errors import BigmodelError

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that stop a run: Ctrl-C, a scheduler's, a closed terminal."""


TWICE = 0.5
"""Seconds in which the same signal, sent twice, is one."""
received: list[int] = []
"""Signals that arrived before the run began.

An exception raised while Python imports or cleans up may be swallowed.
"""


class Interrupted(BaseException):
    """A signal arrived at a point where it is safe to stop.

    Not an `Exception`: no error handler may swallow it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into `Interrupted`, inside `deferred()` only at its end.

    Before `start()` there is nothing to save, and the process leaves at once; after `end()` the
    run's result stands, and signals change nothing. In between, the first signal is raised until it
    is handled (`stopping()`), and later ones are ignored, except a second SIGINT, which exits at
    once with status 130, whatever is in progress: commits are atomic, so the last committed
    checkpoint stays good. A SIGHUP that is already ignored (`nohup`) stays so.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self.depth = 0
        self.started = self.heeded = self.ended = False
        self.gated = False  # whether signals take effect at gates alone
        self.raised = False  # the pending signal was, whatever became of the exception
        self.late = 0  # the first signal after the end
        self.before: dict[int, Any] = {}
        self.unraisable = sys.unraisablehook
        self.leaving: Callable[[], None] | None = None  # called when the process exits at once
        self.shared: Peers | None = None  # the other processes, which stop at the same step
        self.came = 0.0  # when the first signal did

    def __enter__(self) -> Signals:
        """Take the signals over.

        Raises `Interrupted` for an earlier one that Python swallowed.
        """
        if received:
            raise Interrupted(received[0])
        if threading.current_thread() is threading.main_thread():
            sys.unraisablehook = self.on_unraisable
            for number in HEEDED:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.on_signal)
        return self

    def __exit__(self, *raised: object) -> None:
        sys.unraisablehook = self.unraisable
        for number, handler in self.before.items():
            of_command = callable(handler) and handler is not signal.default_int_handler
            # else the command's handler would make a finished run a failure
            if not (self.ended and of_command):
                signal.signal(number, handler)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler: raise now, or at the end of `deferred()`."""
        if self.ended:
            self.late = self.late or number
            return
        if not self.started:
            with contextlib.suppress(OSError):
                os.write(2, b"bigmodel: stopped before anything was written\n")
            os._exit(128 + number)
        if self.shared is not None:
            self._tell(self.shared, number)
        elif self.pending is None:
            self.pending = number
            self.raise_pending()
        elif number == signal.SIGINT:
            with contextlib.suppress(Exception):
                if self.leaving is not None:
                    self.leaving()
            os._exit(128 + signal.SIGINT)

    def _tell(self, shared: Peers, number: int) -> None:
        """A signal to one of several processes: they decide where to stop, and then send another.

        A launcher and a terminal may send the same signal twice, which is one.
        """
        if shared.poked:
            shared.poked = False
            self.pending = shared.signal
            self.raise_pending()
        elif not self.came:
            self.came = time.monotonic()
            shared.signalled(number)
        elif number == signal.SIGINT and time.monotonic() > self.came + TWICE:
            shared.signalled(AT_ONCE)

    def gate(self) -> None:
        """Several processes stop here, or at the next gate, together; see `Peers`.

        Called inside `at_gates()`, by all of them in turn.
        """
        found = self.shared.gate() if self.shared is not None else None
        if found is None:
            return
        self.pending, before = found
        if before and not self.heeded:
            self.raised = True
            raise Interrupted(self.pending)

    def on_unraisable(self, swallowed: Any) -> None:
        """Print nothing of a swallowed `Interrupted`: the next `deferred()` raises it again."""
        if not isinstance(swallowed.exc_value, Interrupted):
            self.unraisable(swallowed)

    def raise_pending(self) -> None:
        """Raise `Interrupted` for a pending signal, unless inside `deferred()`, or `at_gates()`."""
        waits = self.depth or self.gated or self.heeded or self.ended
        if self.pending is not None and not waits:
            self.raised = True
            raise Interrupted(self.pending)

    def start(self) -> None:
        """From now on there is something to save."""
        self.started = True

    def let_alone(self) -> contextlib.AbstractContextManager[None]:
        """`let` in a process without others, which would wait for it: they stop between steps."""
        return self.let() if self.shared is None else contextlib.nullcontext()

    def stopping(self) -> None:
        """The signal is being handled: nothing more is raised."""
        self.heeded = True

    def end(self) -> None:
        """The result stands: later signals change nothing."""
        self.ended = True

    def again(self) -> None:
        """Other work begins: a signal since the end of the last one stops it."""
        self.ended, self.leaving = False, None
        if self.late:
            raise Interrupted(self.late)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals take effect after the enclosed code."""
        depth = self.depth
        self.depth = depth + 1
        try:
            yield
        finally:
            self.depth = depth
        self.raise_pending()

    @contextlib.contextmanager
    def at_gates(self) -> Iterator[None]:
        """Inside, several processes stop at a `gate` alone: anywhere else one might be in an
        exchange with another that is before it, or after.
        """
        before, self.gated = self.gated, self.shared is not None
        try:
            yield
        finally:
            self.gated = before

    @contextlib.contextmanager
    def let(self) -> Iterator[None]:
        """Inside `deferred()`: signals take effect at once again, and context managers between are
        exited.

        `with deferred(), exchanged(), let(): ...` never leaves an exchange half done. An error that
        a library's compiled code makes of an `Interrupted` (pydantic's, while it builds a
        validator) is one again.
        """
        depth = self.depth
        try:
            self.depth = depth - 1
            self.raise_pending()
            yield
        except Exception as error:
            if self.raised and not self.heeded and not isinstance(error, BigmodelError):
                assert self.pending is not None
                raise Interrupted(self.pending) from None
            raise
        finally:
            self.depth = depth
