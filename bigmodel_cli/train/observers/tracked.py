"""Runs a tracker in a thread of its own, so that its errors and delays do not affect the run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from bigmodel_cli.errors import BigmodelError
from bigmodel_cli.trackers import AnyTrackerOptions, TrackedRun, Tracker
from bigmodel_cli.train.observers.base import Observer

if TYPE_CHECKING:
    from bigmodel_cli.train.run import Run

LIMIT = 60.0
LIMIT_STOPPED = 10.0
"""Seconds that the end of a run waits for its trackers; fewer for a stopped run."""


class Tracked(Observer):
    """Passes records on to a tracker.

    Its exception is one warning. Only the end of the run waits for it, for `LIMIT` seconds.
    """

    def __init__(self, options: AnyTrackerOptions) -> None:
        self.options = options
        self.tracker = Tracker()
        self.what = self.tracker.what
        self.thread: threading.Thread | None = None
        self.calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # the thread does not print by itself: that would break the bar
        self.remarks: SimpleQueue[str] = SimpleQueue()
        self.failed = False
        self.until = 0.0  # when to stop waiting; 0 before the end

    def on_start(self, run: Run) -> None:
        """Make and start the tracker."""
        self.say = run.say
        about = TrackedRun(run.directory.path, run.loaded.spec.to_dict(), self.remarks.put)
        try:
            tracker = self.options.build(about)
            self.what, self.tracker = tracker.what, tracker
        except BigmodelError:
            raise
        except Exception as error:  # of a plugin
            self._fail(error)
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()
        self.calls.put(self.tracker.start)

    def cut(self, step: int, rewinds: int) -> None:
        """Have the later records dropped."""
        self.calls.put(lambda: self.tracker.cut(step))

    def write(self, record: dict[str, Any]) -> None:
        self.calls.put(lambda: self.tracker.write(record))
        self._tell()

    def on_end(self, run: Run) -> None:
        """Let the tracker finish, while the run shows its results."""
        self._finish(True, LIMIT)

    def close(self) -> None:
        """Wait for the tracker to finish, but no longer than the limit."""
        thread, self.thread = self.thread, None
        if thread is None:
            return
        self._finish(False, LIMIT_STOPPED)
        thread.join(max(0.0, self.until - time.monotonic()))
        if thread.is_alive():
            self.failed = True
            self.remarks.put(
                f"warning: train.trackers: {self._name}: not finished in time; the run ends without"
                f" waiting for {self.what}"
            )
        self._tell()

    def _finish(self, done: bool, limit: float) -> None:
        if not self.until:
            self.until = time.monotonic() + limit
            self.calls.put(lambda: self.tracker.close(done))
            self.calls.put(None)

    @property
    def _name(self) -> str:
        return str(self.options.type)

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            if self.failed:
                continue
            try:
                call()
            except BaseException as error:
                self._fail(error)
                with contextlib.suppress(BaseException):
                    self.tracker.close(False)

    def _fail(self, error: BaseException) -> None:
        if self.failed:  # at the limit: that is told
            return
        self.failed = True
        text = str(error).partition("\n")[0]
        if not isinstance(error, BigmodelError):
            text = (
                f"train.trackers: {self._name}: {type(error).__name__}{f': {text}' if text else ''}"
            )
        self.remarks.put(f"warning: {text}; training goes on without {self.what}")

    def _tell(self) -> None:
        while not self.remarks.empty():
            self.say(self.remarks.get())
