"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from bigmodel_cli.console import is_terminal, say, terminal, visible
from bigmodel_cli.metrics import MetricInfo, shown
from bigmodel_cli.progress import duration
from bigmodel_cli.train.observers.base import Observer
from bigmodel_cli.train.state import UNKNOWN

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from bigmodel_cli.train.run import Run

BAR_EVERY = 0.2
LINE_EVERY = 10.0
"""Seconds between redraws of the bar, and between plain lines where there is no terminal."""
SAMPLE, SAMPLES = 0.5, 31
"""Least seconds of a sample of the pace, and how many samples are kept."""


class Pace:
    """Remaining seconds of a run, by medians over its last samples, so that one pause hardly
    counts.

    Validations and checkpoints count apart from the steps, by their duration and frequency.
    """

    def __init__(self, step: int) -> None:
        self.first = self.step = step
        self.since = time.perf_counter()
        self.interrupted = False  # by a validation or a checkpoint, since the last sample
        self.interruptions = 0
        self.paces: deque[float] = deque(maxlen=SAMPLES)  # seconds a step
        self.extras: deque[float] = deque(maxlen=SAMPLES)  # seconds an interruption

    def interrupt(self) -> None:
        """Mark that the time since the last sample includes more than steps."""
        self.interruptions += not self.interrupted
        self.interrupted = True

    def add(self, step: int) -> None:
        """The run has reached this step."""
        now = time.perf_counter()
        seconds, steps = now - self.since, step - self.step
        if steps < 0:  # the run went back
            self.first = self.step = step
            self.since, self.interruptions = now, 0
        if steps <= 0 or (seconds < SAMPLE and self.paces):
            return
        if self.interrupted and self.paces:
            self.extras.append(seconds - steps * median(self.paces))
        else:
            self.paces.append(seconds / steps)
        self.since, self.step, self.interrupted = now, step, False

    def left(self, steps: int) -> float | None:
        """Seconds for `steps` more steps; None where nothing is known yet."""
        if not self.paces:
            return None
        extra = (
            median(self.extras) * self.interruptions / (self.step - self.first)
            if self.extras
            else 0.0
        )
        return steps * (median(self.paces) + extra)


WIDE = 76
"""Least columns of a terminal for learning rate and speed."""


class Progress(Observer):
    """Shows loss, learning rate, rate and time left, validations, and messages.

    A logged step costs microseconds.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.total = 0
        self.unit = ""
        self.pace = Pace(0)
        self.info: Callable[[str], MetricInfo] = lambda metric: MetricInfo()
        self.shown = time.perf_counter()
        self.bar: Bar | None = None
        self.task: TaskID | None = None

    def on_start(self, run: Run) -> None:
        """Start the clock, and the bar where there is a terminal."""
        self.run = run
        self.total, self.unit, self.info = run.total, run.task.unit, run.task.info
        self.pace, self.shown = Pace(run.state.step), time.perf_counter()
        if is_terminal():
            self.open_bar(run.state.step)

    def open_bar(self, start: int) -> None:
        """Start the progress bar."""
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("step {task.completed}/{task.fields[of]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            console=terminal(),
            transient=True,
        )
        self.bar.start()
        of = self.total if self.total < UNKNOWN else "?"
        self.task = self.bar.add_task("", total=self.total, completed=start, figures="", of=of)

    def write(self, record: dict[str, Any]) -> None:
        if "val" in record:
            self.on_validation(record)
        elif "lr" in record:
            self.on_log(record)

    def on_log(self, record: dict[str, Any]) -> None:
        """Show the record; one without a loss is of steps that had no effect."""
        now, step = time.perf_counter(), record["step"]
        # by the clock it is foreseen anew
        self.total = self.total if self.run is None else self.run.total
        self.pace.add(step)
        if now - self.shown < (BAR_EVERY if self.bar else LINE_EVERY) and step < self.total:
            return
        self.shown = now
        shown_loss = f"{record['loss']:.4f}" if "loss" in record else "-"
        left = self.pace.left(self.total - step)
        figures = (
            f"loss {shown_loss}  lr {record['lr']:.2e}  {record['per_second']:,.0f} {self.unit}/s"
        )
        remaining = f"  {duration(left)} left" if left is not None else ""
        figures += remaining
        if self.bar is not None and self.task is not None:
            if self.bar.console.size.width < WIDE:  # step and time left must not be cut
                figures = f"loss {shown_loss}{remaining}"
            with contextlib.suppress(OSError):  # the terminal has gone; SIGHUP deals with that
                self.bar.update(
                    self.task, total=self.total, completed=step, figures=figures, of=self.total
                )
        else:
            say(f"step {step}/{self.total}  {figures}")

    def on_validation(self, record: dict[str, Any]) -> None:
        """Show the validation's figures."""
        self.pace.interrupt()
        self.on_message(
            f"step {record['step']}/{self.total}  validation:"
            f" {shown_metrics(record['val'], self.info)}"
        )

    def on_message(self, text: str) -> None:
        """Print a line above the bar."""
        if self.bar is not None:
            with contextlib.suppress(OSError):  # of a terminal that has gone
                self.bar.console.print(visible(text), soft_wrap=True)
        else:
            say(text)

    def on_checkpoint(self, step: int) -> None:
        """Its time does not count as steps."""
        self.pace.interrupt()

    def on_end(self, run: Run) -> None:
        """Remove the bar, since others print below it."""
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.stop()
            self.bar = None


def shown_metrics(metrics: dict[str, float], info: Callable[[str], MetricInfo]) -> str:
    """'loss 1.8857  accuracy 45.20 %' for people; `info` describes a metric."""
    return "  ".join(
        f"{name} {shown(value, info(name).percent)}" for name, value in metrics.items()
    )
