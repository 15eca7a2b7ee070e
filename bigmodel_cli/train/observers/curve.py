"""curve.png: the losses and the metric of a finished run."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel_cli.pictures import new_figure
from bigmodel_cli.rundir import MetricsLog
from bigmodel_cli.train.observers.base import Observer

if TYPE_CHECKING:
    from bigmodel_cli.train.run import Run


class Curve(Observer):
    """Draws curve.png from metrics.jsonl when the run ends; nothing where that could not be written."""

    def __init__(self, metrics: MetricsLog) -> None:
        self.metrics = metrics

    def on_end(self, run: Run) -> None:
        """Draw it."""
        picture = self.metrics.path.with_name("curve.png")
        if self.metrics.broken:
            return
        if drawn(picture, lambda: draw_curve(self.metrics.path, picture, run.task.metric), run.say):
            run.say(f"curve: {picture}")


def drawn(picture: Path, draw: Callable[[], None], tell: Callable[[str], None]) -> bool:
    """Draw a finished run's picture; where that fails for any reason, a warning says why, and the run's result stands."""
    try:
        draw()
    except Exception as error:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        reason = text.splitlines()[0]
        tell(f"warning: {picture}: not drawn: {reason}")
        return False
    return True


def draw_curve(metrics: Path, picture: Path, metric: str) -> None:
    """Draw the training and validation loss of metrics.jsonl, and the task's metric where it is another, as a PNG.

    Validations in which a figure was not a finite number are left out of its line.
    """
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    training = [(r["step"], r["loss"]) for r in records if "loss" in r]
    validation, judged = (
        [(r["step"], r["val"][name]) for r in records if r.get("val", {}).get(name) is not None]
        for name in ("loss", metric)
    )
    if not training and not validation and not judged:
        return
    figure = new_figure((8, 4.5))
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
