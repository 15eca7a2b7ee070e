"""Quality over what was spent, and over the learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.bench.learn.budget import BYTES, FLOPS, SAMPLES, STEPS, TIME
from bigmodel_cli.bench.learn.outcome import Outcome
from bigmodel_cli.bench.learn.result import Learning, Learnt
from bigmodel_cli.bench.picture import COLOURS, DPI
from bigmodel_cli.pictures import new_figure, plain, plain_names, save_figure

LINES = ("-", "--", ":", "-.")
AXES = {
    TIME: "seconds of training",
    FLOPS: "FLOPs of training",
    BYTES: "bytes of training data",
    SAMPLES: "training samples",
    STEPS: "steps",
}


def draw(found: Learning, path: Path) -> None:
    """Raises `ResourceError`."""
    kind = found.length.kind if found.length is not None else STEPS
    figure = new_figure((12, 5))
    curves, rates = figure.subplots(1, 2, width_ratios=(3, 2))
    ranked = found.ranked
    labels = plain_names([own.name for own in ranked])
    for number, (own, label) in enumerate(zip(ranked, labels, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        style = {"color": colour, "linestyle": LINES[number // len(COLOURS) % len(LINES)]}
        for place, outcome in enumerate(own.best):
            points = [(_spent(own, outcome, kind, k), p.value) for k, p in enumerate(outcome.curve)]
            if points:
                curves.plot(
                    *zip(*points, strict=True), **style, label=None if place else label, alpha=0.8
                )
        _draw_rates(rates, own, style)
    name = plain(found.metric.name)
    curves.set(xlabel=AXES[kind], ylabel=f"{name} on the validation data")
    rates.set(xlabel="learning rate", ylabel=f"{name} at the end", xscale="log")
    _zoom(curves, found)
    for axes in (curves, rates):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    curves.legend(frameon=False, fontsize=9)
    budgets = " and ".join(b.text for b in (found.length, found.size) if b is not None)
    figure.suptitle(plain(f"learning within {budgets}"), fontsize=11)
    save_figure(figure, path, DPI)


def _draw_rates(axes: Any, own: Learnt, style: dict[str, Any]) -> None:
    """The first seed's ladder, and the best rate with every seed."""
    points = [(r, value) for r, value in own.ladder.qualities().items() if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style, marker="o", markersize=4)
    axes.plot([own.rate] * len(own.values), own.values, ".", color=style["color"], markersize=4)


def _spent(own: Learnt, outcome: Outcome, kind: str, point: int) -> float:
    """What a run had cost at a point of its curve."""
    at = outcome.curve[point]
    return at.seconds if kind == TIME else at.step * (own.cost.of(kind) or 0.0)


def _zoom(axes: Any, found: Learning) -> None:
    """Leave out what is far worse than what most points have: the beginnings."""
    values = sorted(p.value for own in found.structures for o in own.best for p in o.curve)
    if len(values) < 4:
        return
    best = values[-1] if found.metric.higher_is_better else values[0]
    worst = (
        values[len(values) // 10] if found.metric.higher_is_better else values[-len(values) // 10]
    )
    low, high = sorted((best, worst))
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
