"""A classifier's confusion matrix, macro-F1, and a picture of the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.console import counted, one_line
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.metrics import SHARE, Limits, Measure, shown
from bigmodel_cli.pictures import new_figure, plain, save_figure

NUMBERED = 20  # classes up to which each cell shows its number
NAMED = 50  # classes up to which every class is labelled
LONGEST_NAME = 24
FEWEST = 2
"""Items of a class below which its F1 counts as unknown: anything from 0 to 1."""


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """(N,), (N,) -> (C, C) int64   counts by true class (row) and predicted class (column)."""
    return torch.bincount(labels * classes + predictions, minlength=classes * classes).view(
        classes, classes
    )


def macro_f1(confusion: Tensor) -> Tensor:
    """(..., C, C) -> (...) float64   the mean of F1 = 2 TP / (2 TP + FP + FN).

    The mean is over the classes that occur or are predicted, as scikit-learn's
    `f1_score(average="macro")`.
    """
    counts = confusion.double()
    return _mean_f1(counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1) + counts.sum(-2))


def f1_measure(labels: Tensor, predictions: Tensor, classes: int) -> Measure:
    """macro-F1 from per-item one-hot counts of label, prediction and hit."""
    right = torch.where(labels == predictions, labels, -1)
    places = [(labels, 0), (predictions, classes), (right, 2 * classes)]
    columns = torch.cat([numbers + first for numbers, first in places])
    rows = torch.arange(len(labels)).repeat(3)
    real = torch.cat([numbers >= 0 for numbers, _ in places])
    ones = torch.ones(int(real.sum()), dtype=torch.float64)
    # said so of itself too, PyTorch (2.11) warns of an argument alone
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        counts = torch.sparse_coo_tensor(
            torch.stack((rows[real], columns[real])),
            ones,
            (len(labels), 3 * classes),
            check_invariants=False,
        )

    def value(sums: Tensor) -> Tensor:
        true, predicted, hits = sums.unflatten(-1, (3, classes)).unbind(-2)
        return _mean_f1(hits, true + predicted)

    def bounds(sums: Tensor) -> Limits:
        true, predicted, hits = sums.unflatten(-1, (3, classes)).unbind(-2)
        few = true < FEWEST
        if not bool(few.any()):
            whole = float(_mean_f1(hits, true + predicted))
            return whole, whole
        each = 2 * hits / (true + predicted).clamp(min=1)
        return float(each.masked_fill(few, 0.0).mean()), float(each.masked_fill(few, 1.0).mean())

    return Measure(counts.coalesce(), value, len(labels), *SHARE, bounds)


def _mean_f1(hits: Tensor, both: Tensor) -> Tensor:
    """Hits and 2 TP + FP + FN (..., C) -> (...)."""
    return (2 * hits / torch.where(both > 0, both, torch.nan)).nanmean(-1)


def draw_confusion(confusion: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draw a (C, C) confusion matrix as a PNG: colours are shares of each row, numbers counts.

    Raises `ResourceError` where it cannot be written.
    """
    from matplotlib.colors import PowerNorm

    count = len(classes)
    counts = confusion.cpu().double()
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = min(11.0, 3.2 + (0.75 if count <= NUMBERED else 0.16) * count)
    figure = new_figure((side + 1.0, side))
    axes = figure.add_subplot()
    # Make a few per cent of errors visible.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    _name_axes(axes, [_short(name) for name in classes], 0.8 * side / count)
    if count <= NUMBERED:
        _number_cells(axes, counts.long().tolist(), shares)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02, ticks=[0, 0.05, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "5 %", "25 %", "50 %", "100 %"])
    bar.set_label("of the true class")
    bar.outline.set_visible(False)
    total, right = int(counts.sum()), int(counts.diagonal().sum())
    accuracy, f1 = (
        shown(x, percent=True) for x in (right / max(1, total), float(macro_f1(counts)))
    )
    score = f"{counted(total, 'item')}: accuracy {accuracy}, macro-F1 {f1}"
    axes.set_title(score, fontsize=10, loc="left")
    save_figure(figure, path, dpi=150, tight=True)


def _short(name: str) -> str:
    """A class name, shortened to the room beside the picture."""
    shown = one_line(name)
    return plain(shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…")


def _name_axes(axes: Any, names: list[str], width: float) -> None:
    """Label all classes, or every fifth or tenth; rotated where wider than a cell (in inches)."""
    count = len(names)
    step = 1 if count <= NAMED else 5 if count <= 2 * NAMED else -(-count // 200) * 10
    shown = list(range(0, count, step))
    size = 10 if count <= NUMBERED else 7
    turned = max(map(len, names)) * size * 0.0085 > width
    axes.set_xticks(shown, [names[i] for i in shown], rotation=90 if turned else 0, fontsize=size)
    axes.set_yticks(shown, [names[i] for i in shown], fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.tick_params(length=0 if step == 1 else 3)
    for spine in axes.spines.values():
        spine.set_color("0.7")


def _number_cells(axes: Any, counts: list[list[int]], shares: Any) -> None:
    """Each cell's count, light on dark cells; nothing where it is 0."""
    size = 10 if len(counts) <= 10 else 7
    for i, row in enumerate(counts):
        for j, number in enumerate(row):
            if number:
                colour = "white" if shares[i, j] > 0.3 else "0.15"
                axes.text(
                    j, i, f"{number:,}", ha="center", va="center", fontsize=size, color=colour
                )
