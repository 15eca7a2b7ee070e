"""Stopping by a signal: the step in progress finishes, a checkpoint is saved, the status is 128 +
the signal's number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that stop a run: Ctrl-C, a scheduler's, a terminal that has gone."""


received: list[int] = []
"""Signals that the command had before its run began.

What is raised while Python imports or cleans up may be swallowed.
"""


class Interrupted(BaseException):
    """A signal arrived where nothing is half done.

    Not an `Exception`: no handler for faults may swallow it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into `Interrupted`, but never inside `deferred()`: there it
    is raised at the end.

    Before `start()` there is nothing to save, and the process leaves at once; after `end()` the
    run's result stands, and signals change nothing. In between, the first signal is raised until it
    is heeded (`stopping()`), and later ones are ignored, but for a second SIGINT, which leaves at
    once with status 130, whatever is in progress: commits are atomic, so the last committed
    checkpoint stays good. SIGHUP that is ignored already (`nohup`) stays so.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self.depth = 0
        self.started = self.heeded = self.ended = False
        self.late = 0  # the first signal after the end
        self.before: dict[int, Any] = {}
        self.unraisable = sys.unraisablehook
        self.leaving: Callable[[], None] | None = (
            None  # what is to be recorded when the process leaves at once
        )

    def __enter__(self) -> Signals:
        """Take the signals over.

        Raises `Interrupted` for one that the command had and that Python swallowed.
        """
        if received:
            raise Interrupted(received[0])
        if threading.current_thread() is threading.main_thread():
            sys.unraisablehook = self.on_unraisable
            for number in HEEDED:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.unraisablehook = self.unraisable
        for number, handler in self.before.items():
            of_command = callable(handler) and handler is not signal.default_int_handler
            if not (
                self.ended and of_command
            ):  # else the command's handler would turn what is done into a failure
                signal.signal(number, handler)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler: raise now, or leave it to the end of `deferred()`."""
        if self.ended:
            self.late = self.late or number
            return
        if not self.started:
            with contextlib.suppress(OSError):
                os.write(2, b"bigmodel: stopped before anything was written\n")
            os._exit(128 + number)
        if self.pending is None:
            self.pending = number
            self.raise_pending()
        elif number == signal.SIGINT:
            with contextlib.suppress(Exception):
                if self.leaving is not None:
                    self.leaving()
            os._exit(128 + signal.SIGINT)

    def on_unraisable(self, swallowed: Any) -> None:
        """Say nothing of an `Interrupted` that Python swallows where it cleans up: it is raised
        again at the next `deferred()`.
        """
        if not isinstance(swallowed.exc_value, Interrupted):
            self.unraisable(swallowed)

    def raise_pending(self) -> None:
        """Raise `Interrupted` for a signal that has come and is not yet heeded, unless inside
        `deferred()`.
        """
        if self.pending is not None and self.depth == 0 and not self.heeded and not self.ended:
            raise Interrupted(self.pending)

    def start(self) -> None:
        """From now on there is something to leave in good order."""
        self.started = True

    def stopping(self) -> None:
        """The signal is being heeded: nothing is raised any more."""
        self.heeded = True

    def end(self) -> None:
        """The result stands: signals that come from now on change nothing."""
        self.ended = True

    def again(self) -> None:
        """Another run begins: a signal that came after the end of the last one stops it."""
        self.ended = False
        if self.late:
            raise Interrupted(self.late)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """What runs inside is finished before a signal takes effect."""
        depth = self.depth
        self.depth = depth + 1
        try:
            yield
        finally:
            self.depth = depth
        self.raise_pending()

    @contextlib.contextmanager
    def let(self) -> Iterator[None]:
        """Inside `deferred()`: a signal takes effect at once again, and what was entered between
        the two is left in its own time.

        `with deferred(), exchanged(), let(): ...` never leaves an exchange half done.
        """
        depth = self.depth
        try:
            self.depth = depth - 1
            self.raise_pending()
            yield
        finally:
            self.depth = depth
