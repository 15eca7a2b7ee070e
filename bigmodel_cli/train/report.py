"""What a run shows while it trains: a progress bar on a terminal, plain lines elsewhere, and the curve at the end."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.console import is_terminal, say, terminal, visible
from bigmodel_cli.errors import ResourceError
from bigmodel_cli.metrics import shown
from bigmodel_cli.progress import duration
from bigmodel_cli.tasks import Task

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
            with contextlib.suppress(OSError):  # the terminal has gone; SIGHUP says so in its own way
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


def shown_metrics(metrics: dict[str, float], task: Task) -> str:
    """'loss 1.8857  accuracy 45.20 %' for people."""
    return "  ".join(f"{name} {shown(value, task.info(name).percent)}" for name, value in metrics.items())


class TensorBoard:
    """The same figures as metrics.jsonl, as TensorBoard event files.

    They are written here and not by torch's SummaryWriter, whose thread ends with a traceback where the disk is full. Raises
    `ResourceError` where they cannot be begun; where they cannot be written later, one warning is said and training goes on.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path = directory / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.broken = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.records: Any = RecordWriter(open(self.path, "ab", buffering=0))  # noqa: SIM115
            self._event(file_version="brain.Event:2")
        except OSError as error:
            raise ResourceError(
                f"{self.path}: cannot be written: {os.strerror(error.errno or 0)}; make room, or leave out train.tensorboard"
            ) from None

    def write(self, record: dict[str, Any]) -> None:
        """Add one record of metrics.jsonl."""
        found: dict[str, float] = {}
        for name, value in record.items():
            if isinstance(value, dict):
                found |= {f"{name}/{inner}": number for inner, number in value.items()}
            elif isinstance(value, float):
                found[f"train/{name}"] = value
        figures = [{"tag": name, "simple_value": value} for name, value in found.items() if math.isfinite(value)]
        if self.broken or not figures:
            return
        try:
            self._event(step=record["step"], summary={"value": figures})
        except OSError as error:
            self.broken = True
            reason = os.strerror(error.errno or 0)
            say(f"warning: {self.path}: cannot be written: {reason}; training goes on without TensorBoard's files")

    def _event(self, **values: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.records.write(Event(wall_time=time.time(), **values).SerializeToString())


def drawn(picture: Path, draw: Callable[[], None]) -> bool:
    """Draw a finished run's picture; where that fails for any reason, a warning says why, and the run's result stands."""
    try:
        draw()
    except Exception as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        reason = text.splitlines()[0]
        say(f"warning: {picture}: not drawn: {reason}")
        return False
    return True


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
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    draft = picture.with_name(f".{picture.name}.{os.getpid()}")
    try:
        draft.write_bytes(content.getvalue())
        os.replace(draft, picture)
    finally:
        draft.unlink(missing_ok=True)
