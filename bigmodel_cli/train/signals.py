"""Stopping by a signal: the step in progress finishes, a checkpoint is saved, the status is 128 + the signal's number."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived where nothing is half done. Not an `Exception`: no handler for faults may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Turns SIGINT and SIGTERM into `Interrupted`, but never inside `held()`: there it is raised at the end.

    A second SIGINT inside `held()` leaves at once with status 130, whatever is in progress; commits are atomic, so the
    last committed checkpoint stays good.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self.depth = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler: raise now, or leave it to the end of `held()`."""
        if self.pending is not None and number == signal.SIGINT:
            os._exit(128 + signal.SIGINT)
        self.pending = number
        self.raise_pending()

    def raise_pending(self) -> None:
        """Raise `Interrupted` for a signal that has come, unless inside `held()`."""
        if self.pending is not None and self.depth == 0:
            raise Interrupted(self.pending)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What runs inside is finished before a signal takes effect."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
        self.raise_pending()

    @contextlib.contextmanager
    def let(self) -> Iterator[None]:
        """Inside `held()`: a signal takes effect at once again, and what was entered between the two is left in its own time.

        `with held(), exchanged(), let(): ...` never leaves an exchange half done.
        """
        try:
            self.depth -= 1
            self.raise_pending()
            yield
        finally:
            self.depth += 1
