"""How far long work other than training has come: a bar on a terminal, plain lines elsewhere;
nothing of what ends soon.

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
"""Seconds until a bar appears and between its redraws; and between plain lines where there is no
terminal.
"""


class Progress:
    """`what` is being done, so far of `total` (None: nobody knows) in `unit`; `add` and `to` cost
    about a microsecond.

    Each of their calls is a failpoint that is called as the work is.
    """

    def __init__(self, what: str, total: float | None, unit: str) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0.0
        self.started = time.perf_counter()
        self.bar: Bar | None = None
        self.wanted = is_terminal()
        self.due = self.started + (BAR_AFTER if self.wanted else LINE_EVERY)

    def add(self, more: float) -> None:
        """So much more is done."""
        self.to(self.done + more)

    def to(self, done: float) -> None:
        """So much is done in all."""
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
        """'tokenizing: 37 % of 60.5 MB, 0:12 left', without a share where the whole is not known."""
        seconds = time.perf_counter() - self.started
        if not self.total:
            return f"{self.what}: {quantity(self.done, self.unit)} in {duration(seconds)}"
        share = min(1.0, self.done / self.total)
        left = f", {duration(seconds * (1 - share) / share)} left" if share else ""
        return f"{self.what}: {100 * share:.0f} % of {quantity(self.total, self.unit)}{left}"

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


_bars: list[Progress] = []
"""The one whose bar stands on the terminal, if any."""
_open: list[Progress] = []
"""Those that `reading` has opened; the last one is shown."""


@contextlib.contextmanager
def progress(what: str, total: float | None, unit: str) -> Iterator[Progress]:
    """Show how far the work inside has come; it tells so by `add` or `to`."""
    shown = Progress(what, total, unit)
    try:
        yield shown
    finally:
        shown.close()


@contextlib.contextmanager
def reading(what: str, paths: Sequence[Path]) -> Iterator[None]:
    """The work inside reads these files once, and what their readers `advance` by is how far it has
    come.
    """
    sizes = [path.stat().st_size for path in paths if os.path.isfile(path)]
    with progress(what, sum(sizes), "B") as shown:
        _open.append(shown)
        try:
            yield
        finally:
            _open.remove(shown)


def advance(size: int) -> None:
    """So many more bytes of a file (as they are on the disk) have been read, for whatever work is
    open.
    """
    if _open:
        _open[-1].add(size)


def duration(seconds: float) -> str:
    """'1:02:03' or '2:03' for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _open_bar(what: str, total: float | None) -> Bar:
    """A bar without a thread of its own: it is redrawn by those who do the work."""
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
