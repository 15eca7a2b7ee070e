"""curve.png: losses and metric of a finished run, its learning rate and gradient norm."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bigmodel_cli.pictures import (
    MARKED,
    log_where_wide,
    metric_axis,
    new_figure,
    plain,
    tidy,
    whole_steps,
)
from bigmodel_cli.train.observers.base import Observer
from bigmodel_cli.train.observers.log import Log

if TYPE_CHECKING:
    from bigmodel_cli.train.run import Run


Points = list[tuple[int, float]]


class About(NamedTuple):
    """What a curve needs beside the metrics: the run's name, its metric, and the clipping norm."""

    title: str
    name: str
    higher_is_better: bool
    percent: Sequence[str]
    max_grad_norm: float | None


class Curve(Observer):
    """Draws curve.png from metrics.jsonl when the run ends, if that file was written."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def on_end(self, run: Run) -> None:
        picture = self.log.path.with_name("curve.png")
        if self.log.broken:
            return
        about = About(
            Path(os.path.abspath(picture)).parent.name,
            **run.task.described(),
            max_grad_norm=run.options.max_grad_norm,
        )
        if drawn(picture, lambda: draw_curve(self.log.path, picture, about), run.say):
            run.say(f"curve: {picture}")


def drawn(picture: Path, draw: Callable[[], None], tell: Callable[[str], None]) -> bool:
    """Draw a finished run's picture; any failure is a warning, and the run's result stands."""
    try:
        draw()
    except Exception as error:
        text = (
            (error.strerror if isinstance(error, OSError) else None)
            or str(error)
            or type(error).__name__
        )
        reason = text.splitlines()[0]
        tell(f"warning: {picture}: not drawn: {reason}")
        return False
    return True


def draw_curve(metrics: Path, picture: Path, about: About) -> None:
    """Draw metrics.jsonl as a PNG: losses and metric; learning rate and gradient norm.

    A validation whose figure is not finite is a gap in its line.
    """
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    shown = ("loss", about.name)
    steps = [
        r["step"]
        for r in records
        if any({**r, **r.get("val", {})}.get(name) is not None for name in shown)
    ]
    if not steps:
        return
    figure = new_figure((8, 6))
    figure.set_layout_engine(None)  # finding a layout takes as long as drawing
    figure.subplots_adjust(left=0.1, right=0.87, top=0.89, bottom=0.08, hspace=0.22)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(5, 2))
    figure.suptitle(plain(about.title))
    _draw_losses(upper, records, about)
    _draw_training(lower, records, about.max_grad_norm)
    whole_steps(lower, steps)
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    draft = picture.with_name(f".{picture.name}.{os.getpid()}")
    try:
        draft.write_bytes(content.getvalue())
        os.replace(draft, picture)
    finally:
        draft.unlink(missing_ok=True)


def _draw_losses(axes: Any, records: list[dict[str, Any]], about: About) -> None:
    training = _points(records, "loss")
    validated, judged = (
        [
            (r["step"], _number(r["val"].get(name)))
            for r in records
            if "val" in r and "averaged" not in r
        ]
        for name in ("loss", about.name)
    )
    averaged = [(r["step"], _number(r["val"].get(about.name))) for r in records if "averaged" in r]
    lines = [
        *_line(axes, training, "#9db4c8", "training loss", width=1),
        *_line(axes, validated, "#12507b", "validation loss"),
    ]
    axes.set_ylabel("loss")
    tidy(axes)
    log_where_wide(axes, [value for _, value in (*training, *validated) if math.isfinite(value)])
    place = axes
    if about.name != "loss" and any(math.isfinite(value) for _, value in judged):
        place = axes.twinx()
        lines += _line(place, judged, "#c2571a", f"validation {about.name}")
        place.set_ylabel(plain(about.name))
        tidy(place, right=True)
        metric_axis(
            place,
            [v for _, v in (*judged, *averaged) if math.isfinite(v)],
            about.name in about.percent,
        )
    if averaged:
        lines += place.plot(
            *zip(*averaged, strict=True), "*", color="#c2571a", label="of the averaged weights"
        )
    _legend(axes, lines)


def _draw_training(axes: Any, records: list[dict[str, Any]], clip: float | None) -> None:
    norms = _points(records, "grad_norm")
    lines = _line(axes, norms, "#b5a4c8", "norm of the gradient", width=1)
    if clip is not None:
        lines.append(
            axes.axhline(
                clip, color="#6d4f92", linestyle="--", linewidth=1, label=f"clipped at {clip:g}"
            )
        )
    axes.set_ylabel("gradient")
    tidy(axes)
    log_where_wide(axes, [value for _, value in norms])
    right = axes.twinx()
    lines += _line(right, _points(records, "lr"), "#5b8c3e", "learning rate")
    right.set_ylabel("learning rate")
    tidy(right, right=True)
    right.set_ylim(bottom=0)
    _legend(axes, lines)


def _points(records: list[dict[str, Any]], name: str) -> Points:
    return [(r["step"], r[name]) for r in records if r.get(name) is not None]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _line(axes: Any, points: Points, color: str, label: str, width: float = 1.5) -> list[Any]:
    """The line, if there is anything to draw."""
    if not any(math.isfinite(value) for _, value in points):
        return []
    marker = "o" if len(points) < MARKED else None
    return list(
        axes.plot(
            *zip(*points, strict=True),
            color=color,
            label=plain(label),
            marker=marker,
            markersize=3.5,
            linewidth=width,
        )
    )


def _legend(axes: Any, lines: list[Any]) -> None:
    """Draw the legend above the axes, never over a line."""
    if lines:
        options = {
            "loc": "lower center",
            "bbox_to_anchor": (0.5, 1.0),
            "ncols": len(lines),
            "fontsize": "small",
        }
        axes.legend(lines, [line.get_label() for line in lines], frameon=False, **options)
