"""A result as a picture: each block in turn, and how the rates differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.bench.result import Measured, Result
from bigmodel_cli.pictures import new_figure, plain, save_figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart with any colour vision (Okabe and Ito 2008)."""
DPI = 150


def draw(result: Result, path: Path) -> None:
    """Milliseconds of each block over the turns, and the spread of each target. Raises
    `ResourceError`.
    """
    measured = result.measured
    figure = new_figure((10, 4.2))
    turns, spread = figure.subplots(1, 2, width_ratios=(3, 1 + 0.3 * len(measured)), sharey=True)
    for number, own in enumerate(measured):
        _draw_turns(turns, own, COLOURS[number % len(COLOURS)])
    turns.set(xlabel="turn", ylabel="milliseconds of a step", ylim=(0, _top(measured)))
    turns.xaxis.get_major_locator().set_params(integer=True)
    turns.legend(loc="lower right", frameon=False)
    names = [plain(m.facts.name) for m in measured]
    boxes = spread.boxplot(
        [[1e3 * s for s in m.steps()] for m in measured],
        tick_labels=names,
        showfliers=False,
        patch_artist=True,
        widths=0.5,
        medianprops={"color": "black"},
    )
    for number, box in enumerate(boxes["boxes"]):
        box.set(facecolor=COLOURS[number % len(COLOURS)], alpha=0.6)
    for axes in (turns, spread):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(plain(f"{measured[0].facts.doing} on {measured[0].facts.device}"), fontsize=11)
    save_figure(figure, path, DPI)


def _draw_turns(axes: Any, own: Measured, colour: str) -> None:
    counted = [(b.place, 1e3 * b.median) for b in own.blocks if not b.rejected]
    others = [(b.place, 1e3 * b.median) for b in own.blocks if b.rejected]
    label = plain(own.facts.name)
    if counted:
        axes.plot(*zip(*counted, strict=True), ".", color=colour, label=label)
    if others:
        more = f"{label}: other work ran" if counted else f"{label} (other work ran)"
        axes.plot(*zip(*others, strict=True), "x", color=colour, alpha=0.5, label=more)


def _top(measured: Sequence[Measured]) -> float:
    """The largest median of a block, with room for the legend."""
    return 1.15 * max(1e3 * block.median for m in measured for block in m.blocks)
