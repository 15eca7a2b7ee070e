"""What a run shows while it trains: a progress bar on a terminal, plain lines elsewhere, and the curve at the end."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.console import is_terminal, say, terminal, visible
from bigmodel_cli.metrics import shown

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR_EVERY = 0.2
LINE_EVERY = 10.0
"""Seconds between redraws of the bar, and between plain lines where there is no terminal."""


class Reporter:
    """Shows loss, learning rate, rate and time left. `step` is called at every logged step and costs microseconds."""

    def __init__(self, total: int, start: int, unit: str) -> None:
        self.total, self.first, self.unit = total, start, unit
        self.started = self.shown = time.perf_counter()
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        if is_terminal():
            self.open_bar(start)

    def open_bar(self, start: int) -> None:
        """Start the progress bar."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=terminal(),
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=self.total, completed=start, figures="")

    def step(self, step: int, loss: float | None, lr: float, rate: float) -> None:
        """Show where the run is; `rate` is in units per second. Without a loss, no step had any effect."""
        now = time.perf_counter()
        if now - self.shown < (BAR_EVERY if self.bar else LINE_EVERY) and step < self.total:
            return
        self.shown = now
        shown_loss = f"{loss:.4f}" if loss is not None else "-"
        figures = f"loss {shown_loss}  lr {lr:.2e}  {rate:,.0f} {self.unit}/s"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step, figures=figures)
        else:
            left = (now - self.started) / max(1, step - self.first) * (self.total - step)
            say(f"step {step}/{self.total}  {figures}  {duration(left)} left")

    def line(self, text: str) -> None:
        """Print a line that stays."""
        if self.bar is not None:
            with contextlib.suppress(OSError):  # of a terminal that has gone
                self.bar.console.print(visible(text), soft_wrap=True)
        else:
            say(text)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            with contextlib.suppress(OSError):
                self.bar.stop()
            self.bar = None


def duration(seconds: float) -> str:
    """'1:02:03' or '2:03' for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shown_metrics(metrics: dict[str, float]) -> str:
    """'loss 1.8857  accuracy 45.20 %' for people."""
    return "  ".join(f"{name} {shown(name, value)}" for name, value in metrics.items())


class TensorBoard:
    """The same figures as metrics.jsonl, as TensorBoard event files."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(directory))

    def write(self, record: dict[str, Any]) -> None:
        """Add one record of metrics.jsonl."""
        step = record["step"]
        for name, value in record.items():
            if isinstance(value, dict):
                for inner, number in value.items():
                    if math.isfinite(number):
                        self.writer.add_scalar(f"{name}/{inner}", number, step)
            elif isinstance(value, float) and math.isfinite(value):
                self.writer.add_scalar(f"train/{name}", value, step)


def draw_curve(metrics: Path, picture: Path, metric: str) -> None:
    """Draw the training and validation loss of metrics.jsonl, and the task's metric where it is another, as a PNG.

    Validations in which a figure was not a finite number are left out of its line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    training = [(r["step"], r["loss"]) for r in records if "loss" in r]
    validation, judged = (
        [(r["step"], r["val"][name]) for r in records if r.get("val", {}).get(name) is not None]
        for name in ("loss", metric)
    )
    if not training and not validation and not judged:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if training:
        axes.plot(*zip(*training, strict=True), color="#9db4c8", linewidth=1, label="training loss")
    marker = "o" if max(len(validation), len(judged)) < 30 else None
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#12507b", marker=marker, markersize=4, label="validation loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    lines, labels = axes.get_legend_handles_labels()
    if judged and metric != "loss":
        right = axes.twinx()
        (line,) = right.plot(*zip(*judged, strict=True), color="#c2571a", marker=marker, markersize=4)
        right.set_ylabel(metric)
        right.spines["top"].set_visible(False)
        lines, labels = [*lines, line], [*labels, f"validation {metric}"]
    figure.legend(lines, labels, frameon=False, loc="outside upper center", ncols=len(lines))  # never upon a line
    figure.savefig(picture, dpi=120)
