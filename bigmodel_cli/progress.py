"""Progress of long work other than training: a bar on a terminal, plain lines elsewhere; nothing
for short work.

`progress` opens one. Work that reads files is measured where they are read: `reading` opens one
over their bytes, and the readers of data call `advance` with what they have read, whoever asked
them to.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel_cli.console import is_terminal, quantity, say, terminal
from bigmodel_cli.failpoints import failpoint

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

BAR_AFTER, BAR_EVERY = 1.0, 0.2
LINE_EVERY = 10.0
"""Seconds until a bar appears and between its redraws, or between plain lines where there is no
terminal.
"""


class Progress:
    """`what` is being done, `done` of `total` (None: unknown) in `unit`; `add` and `to` cost about
    a microsecond.

    Each of their calls is a failpoint with the name of the work.
    """

    def __init__(self, what: str, total: float | None, unit: str) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0.0
        self.started = time.perf_counter()
        self.bar: Bar | None = None
        self.wanted = is_terminal()
        self.due = self.started + (BAR_AFTER if self.wanted else LINE_EVERY)

    def add(self, more: float) -> None:
        """Add to the amount done."""
        self.to(self.done + more)

    def to(self, done: float) -> None:
        """Set the amount done."""
        self.done = done
        failpoint(self.what)
        if time.perf_counter() >= self.due:
            self.show()

    def show(self) -> None:
        """Redraw the bar, or print a line."""
        self.due = time.perf_counter() + (BAR_EVERY if self.wanted else LINE_EVERY)
        if self.wanted:
            if self.bar is None:
                for other in _bars:  # one at a time
                    other.close()
                self.bar = _open_bar(self.what, self.total)
                _bars[:] = [self]
            self.bar.update(self.bar.task_ids[0], completed=self.done, refresh=True)
        else:
            say(self.line())

    def line(self) -> str:
        """'tokenizing: 37 % of 60.5 MB, 0:12 left', without a share where the whole is not
        known.
        """
        seconds = time.perf_counter() - self.started
        if not self.total:
            return f"{self.what}: {quantity(self.done, self.unit)} in {duration(seconds)}"
        share = min(1.0, self.done / self.total)
        left = f", {duration(seconds * (1 - share) / share)} left" if share else ""
        return f"{self.what}: {100 * share:.0f} % of {quantity(self.total, self.unit)}{left}"

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


_bars: list[Progress] = []
"""The bar that is on the terminal, if any."""
_open: list[Progress] = []
"""Those opened by `reading`; the last one is shown."""


@contextlib.contextmanager
def progress(what: str, total: float | None, unit: str) -> Iterator[Progress]:
    """Show the progress of the work inside, which reports it by `add` or `to`."""
    shown = Progress(what, total, unit)
    try:
        yield shown
    finally:
        shown.close()


@contextlib.contextmanager
def reading(what: str, paths: Sequence[Path]) -> Iterator[None]:
    """Show the progress of the work inside, which reads these files once; their readers report by
    `advance`.
    """
    sizes = [path.stat().st_size for path in paths if os.path.isfile(path)]
    with progress(what, sum(sizes), "B") as shown:
        _open.append(shown)
        try:
            yield
        finally:
            _open.remove(shown)


def advance(size: int) -> None:
    """That many more bytes of a file (as on disk) have been read, for whatever work is open."""
    if _open:
        _open[-1].add(size)


def duration(seconds: float) -> str:
    """'1:02:03' or '2:03' for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _open_bar(what: str, total: float | None) -> Bar:
    """A bar without a thread of its own: those who do the work redraw it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    left = (
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    bar = Progress(
        *columns, *(left if total else ()), console=terminal(), transient=True, auto_refresh=False
    )
    bar.add_task(what, total=total)
    bar.start()
    return bar
