"""Where a run is: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bigmodel_cli.console import is_terminal, say, terminal, visible
from bigmodel_cli.metrics import MetricInfo, shown
from bigmodel_cli.progress import duration
from bigmodel_cli.train.observers.base import Observer

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from bigmodel_cli.train.loop import Run

BAR_EVERY = 0.2
LINE_EVERY = 10.0
"""Seconds between redraws of the bar, and between plain lines where there is no terminal."""
WIDE = 76
"""Columns of a terminal that has room for learning rate and speed."""


class Progress(Observer):
    """Shows loss, learning rate, rate and time left, validations, and messages. A logged step costs microseconds."""

    def __init__(self) -> None:
        self.total = self.first = 0
        self.unit = ""
        self.info: Callable[[str], MetricInfo] = lambda metric: MetricInfo()
        self.started = self.shown = time.perf_counter()
        self.bar: Bar | None = None
        self.task: TaskID | None = None

    def on_start(self, run: Run) -> None:
        """Start the clock, and the bar where there is a terminal."""
        self.total, self.first, self.unit, self.info = run.total, run.state.step, run.task.unit, run.task.info
        self.started = self.shown = time.perf_counter()
        if is_terminal():
            self.open_bar(self.first)

    def open_bar(self, start: int) -> None:
        """Start the progress bar."""
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        self.bar = Bar(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            TextColumn("left"),
            console=terminal(),
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=self.total, completed=start, figures="")

    def on_log(self, record: dict[str, Any]) -> None:
        """Show where the run is; a record without a loss is of steps that had no effect."""
        now, step = time.perf_counter(), record["step"]
        if now - self.shown < (BAR_EVERY if self.bar else LINE_EVERY) and step < self.total:
            return
        self.shown = now
        shown_loss = f"{record['loss']:.4f}" if "loss" in record else "-"
        figures = f"loss {shown_loss}  lr {record['lr']:.2e}  {record['per_second']:,.0f} {self.unit}/s"
        if self.bar is not None and self.task is not None:
            if self.bar.console.size.width < WIDE:  # step and time left are not to be cut
                figures = f"loss {shown_loss}"
            with contextlib.suppress(OSError):  # the terminal has gone; SIGHUP says so in its own way
                self.bar.update(self.task, completed=step, figures=figures)
        else:
            left = (now - self.started) / max(1, step - self.first) * (self.total - step)
            say(f"step {step}/{self.total}  {figures}  {duration(left)} left")

    def on_validation(self, record: dict[str, Any]) -> None:
        """Show the validation's figures."""
        self.on_message(f"step {record['step']}/{self.total}  validation: {shown_metrics(record['val'], self.info)}")

    def on_message(self, text: str) -> None:
        """Print a line that stays."""
        if self.bar is not None:
            with contextlib.suppress(OSError):  # of a terminal that has gone
                self.bar.console.print(visible(text), soft_wrap=True)
        else:
            say(text)

    def on_end(self, run: Run) -> None:
        """Remove the bar: what others show comes below it."""
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.stop()
            self.bar = None


def shown_metrics(metrics: dict[str, float], info: Callable[[str], MetricInfo]) -> str:
    """'loss 1.8857  accuracy 45.20 %' for people; `info` says what is to be known of a metric."""
    return "  ".join(f"{name} {shown(value, info(name).percent)}" for name, value in metrics.items())
