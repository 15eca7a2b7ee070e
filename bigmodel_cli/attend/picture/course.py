"""`--over`: the statistics of heads at each step of a run, as small multiples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.colours import CLASSES, hexadecimal
from bigmodel_cli.attend.course import Course
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.picture.frame import draw_caption, draw_header, finish
from bigmodel_cli.attend.picture.sheet import GREY, INK, LINE, MARGIN, Sheet
from bigmodel_cli.console import counted
from bigmodel_cli.pictures import whole_steps

PANELS = (
    ("induction", "induction score"),
    ("previous", "share on the previous token"),
    ("sink", "share on the first key"),
    ("entropy", "entropy in nats"),
    ("distance", "mean distance in tokens"),
)
NAMED = 3
"""Heads of a panel that are drawn in colour and named: those that changed most."""
COLOURS = tuple(hexadecimal(CLASSES[letter]) for letter in "spi")
WIDE, HIGH, LEFT, ABOVE, BELOW = 620, 420, 110, 50, 110


def draw_course(course: Course, path: Path) -> None:
    """A panel for the loss and one for each statistic, with a line for each head."""
    sheet = Sheet()
    width = 3 * (WIDE + LEFT) - MARGIN
    look = course.named(
        Look(course.model, [], notes=[*filter(None, [course.said()]), *course.notes])
    )
    heads = counted(len(course.heads()), "head")
    facts = [counted(len(course.steps), "checkpoint"), heads]
    top = draw_header(sheet, look, width, facts)
    for place, (name, title) in enumerate((("loss", "loss in nats"), *PANELS)):
        x = MARGIN + LEFT - 20 + place % 3 * (WIDE + LEFT)
        y = top + ABOVE + place // 3 * (HIGH + ABOVE + BELOW)
        axes = sheet.inset(x, y, WIDE - 40, HIGH)
        sheet.text(x, y - 24, title, 7.5, weight="bold")
        if name == "loss":
            _draw_losses(axes, course)
        else:
            _draw_heads(axes, course, name)
        _finish(axes, course, name)
    y = top + 2 * (HIGH + ABOVE + BELOW)
    how = "Each line is a head; those whose value changed most are named LAYER.HEAD."
    if course.onset() is not None:
        how += " The grey band is where induction appears."
    finish(sheet, path, width, draw_caption(sheet, y, look, width, how, checked=False))


def _draw_losses(axes: Any, course: Course) -> None:
    for values, colour, name in (
        (course.loss, INK, "on the input"),
        (course.repeats, COLOURS[1], "on what repeats in it"),
    ):
        if not all(map(math.isnan, values)):
            axes.plot(course.steps, values, color=colour, lw=1.3, label=name)
    if axes.lines:
        axes.legend(fontsize=6, frameon=False, handlelength=1.2)
    _set_top(axes, [*course.loss, *course.repeats])


def _draw_heads(axes: Any, course: Course, name: str) -> None:
    lines = {head: course.of(name, *head) for head in course.heads()}
    spans = {head: _span(values) for head, values in lines.items()}
    named = sorted(spans, key=lambda head: -spans[head])[:NAMED]
    for head, values in lines.items():
        if head not in named:
            axes.plot(course.steps, values, color=LINE, lw=0.5, alpha=0.8)
    for head, colour in zip(named, COLOURS, strict=False):
        label = f"{head[0]}.{head[1]}"
        axes.plot(course.steps, lines[head], color=colour, lw=1.3, label=label)
    if any(spans[head] > 0 for head in named):
        axes.legend(fontsize=6, frameon=False, handlelength=1.2)
    if name in ("induction", "previous", "sink"):
        axes.set_ylim(0, 1.02)
    else:
        _set_top(axes, [value for values in lines.values() for value in values])


def _set_top(axes: Any, values: Sequence[float]) -> None:
    """From zero to a little more than the largest, whose line is then whole."""
    axes.set_ylim(
        0, 1.05 * max((value for value in values if math.isfinite(value)), default=0) or 1
    )


def _span(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return max(known) - min(known) if known else 0.0


def _finish(axes: Any, course: Course, name: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2, lw=0.4)
    axes.tick_params(labelsize=6, length=2, width=0.5)
    axes.spines[:].set_linewidth(0.5)
    whole_steps(axes, course.steps)
    axes.xaxis.label.set_size(6.5)
    axes.xaxis.label.set_color(GREY)
    onset = course.onset()
    if onset is not None and name in ("loss", "induction"):
        axes.axvspan(onset.before, onset.step, color="#d9d9d9", lw=0, zorder=0)
