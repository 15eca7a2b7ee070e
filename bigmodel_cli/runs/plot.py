"""The curves of several runs in one picture: comparable ones together, others beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.console import counted
from bigmodel_cli.pictures import (
    MARKED,
    log_where_wide,
    metric_axis,
    new_figure,
    plain,
    save_figure,
    tidy,
    whole_steps,
)
from bigmodel_cli.runs.record import Metric, RunRecord, training_figures
from bigmodel_cli.runs.search import run_names

MOST_NAMED = 30
"""Most runs that a plot names."""
Points = Sequence[tuple[int, float]]
Group = tuple[str, Metric]
"""Task and metric."""


def groups(runs: Sequence[RunRecord]) -> dict[Group, list[RunRecord]]:
    """The runs by what makes their curves comparable: task and metric."""
    by_group: dict[Group, list[RunRecord]] = {}
    for run in runs:
        by_group.setdefault((str(run.options.get("task.type", "?")), run.metric), []).append(run)
    return by_group


def plot(runs: Sequence[RunRecord], path: Path) -> bool:
    """Draw the metric and the losses of each group; False where no run has recorded anything.

    Raises `ResourceError`.
    """
    names = dict(
        zip((run.path for run in runs), run_names([run.path for run in runs]), strict=True)
    )
    curves = {run.path: training_figures(run.path) for run in runs}
    drawn = {
        key: members
        for key, members in groups(runs).items()
        if any(r.validations or curves[r.path] for r in members)
    }
    if not drawn:
        return False
    figure = new_figure((11, 4.2 * len(drawn)))
    places = figure.subplots(len(drawn), 2, squeeze=False)
    for (left, right), ((task, metric), members) in zip(places, drawn.items(), strict=True):
        for number, run in enumerate(members):
            label, color = plain(names[run.path]), f"C{number % 10}"
            style = ("-", "--", ":", "-.")[number // 10 % 4]
            _line(left, _validated(run, metric.name), color, style, label=label)
            _line(right, curves[run.path], color, style, faint=True)
            if metric.name != "loss":
                _line(right, _validated(run, "loss"), color, style)
        left.set_title(
            f"{plain(task)}, {counted(len(members), 'run')}" if len(drawn) > 1 else "",
            loc="left",
            fontsize="medium",
        )
        _finish(left, f"validation {plain(metric.name)}", metric)
        _finish(
            right,
            "training loss" if metric.name == "loss" else "validation and (pale) training loss",
            None,
        )
        lines, labels = left.get_legend_handles_labels()
        if len(labels) <= MOST_NAMED:
            left.legend(lines, labels, frameon=False, fontsize="small")
    save_figure(figure, path, dpi=120)
    return True


def _validated(run: RunRecord, name: str) -> Points:
    """A metric's values; a gap in the line where it was not finite."""
    return [(v.step, v.values.get(name, math.nan)) for v in run.validations]


def _line(
    axes: Any, points: Points, color: str, style: str, *, label: str = "", faint: bool = False
) -> None:
    marker = "o" if len(points) < MARKED else None
    steps, values = zip(*points, strict=True) if points else ((), ())
    (line,) = axes.plot(steps, values, color=color, linestyle=style, marker=marker, markersize=3.5)
    line.set_label(label or "_nolegend_")
    if faint:
        line.set(alpha=0.35, linewidth=0.8)


def _finish(axes: Any, label: str, metric: Metric | None) -> None:
    """Fit the axes to the data."""
    steps = [x for line in axes.lines for x in line.get_xdata()]
    values = [y for line in axes.lines for y in line.get_ydata() if math.isfinite(y)]
    axes.set_ylabel(label)
    tidy(axes)
    if not values:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color="gray")
        return
    whole_steps(axes, steps)
    if metric is not None and metric.name != "loss":
        metric_axis(axes, values, metric.name in metric.percent)
    else:
        log_where_wide(axes, values)
