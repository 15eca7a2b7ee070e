"""Attention maps and heat maps as pictures, in the format of the file's suffix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.heads import Heads, label
from bigmodel_cli.attend.heat import Heat
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.pictures import new_figure, plain, plain_names, save_figure

LABEL_WIDTH = 16
LINE = 0.115
"""Inches from one token's label to the next, where all are shown."""
MOST_INCHES = 16.0
"""Width of a picture's maps together in inches, unless they would be too small."""
TICKS = (0.01, 0.05, 0.1, 0.25, 0.5)


def draw_heads(
    heads: Heads, layers: Sequence[int], head: int | None, title: str, path: Path
) -> None:
    """A grid of maps: layers in rows, heads (or one) in columns, with token labels."""
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    columns = [head] if head is not None else range(max(len(heads.weights[i]) for i in layers))
    names = plain_names([title, *(label(token, LABEL_WIDTH) for token in heads.tokens)])
    title = names.pop(0)
    most = max(len(layers), len(columns))
    side = min(max(3.2 if most == 1 else 1.8, LINE * len(names)), max(2.2, MOST_INCHES / most))
    step = math.ceil(LINE * len(names) / side)
    margin = 0.06 * max(map(len, names))
    figure = new_figure((len(columns) * side + margin + 1.9, len(layers) * side + margin + 1.1))
    grid = figure.subplots(len(layers), len(columns), squeeze=False)
    shown = [heads.weights[i] for i in layers]
    peak, least = max(float(w.max()) for w in shown), min(float(w.min()) for w in shown)
    norm = PowerNorm(0.5, 0, peak)  # make small weights visible
    colours = colormaps["Blues"].with_extremes(under="#f0b27a")
    image = None
    for row, line in zip(layers, grid, strict=True):
        for number, axes in zip(columns, line, strict=True):
            if number >= len(heads.weights[row]):
                axes.set_axis_off()
                continue
            image = axes.imshow(
                heads.weights[row][number].numpy(), cmap=colours, norm=norm, interpolation="nearest"
            )
            _name_axes(axes, names, step, left=number == columns[0], below=row == layers[-1])
            axes.set_title(f"head {number}" if row == layers[0] else "", fontsize=9)
        line[0].set_ylabel(heads.layers[row], fontsize=9)
    every = f" (one in {step} is named)" if step > 1 else ""
    figure.supxlabel(f"position looked at{every}", fontsize=9)
    figure.supylabel(f"position that looks{every}", fontsize=9)
    bar = figure.colorbar(
        image, ax=grid, extend="min" if least < 0 else "neither", fraction=0.05, pad=0.02
    )
    ticks = [0, *(tick for tick in TICKS if tick < 0.8 * peak), peak]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.ax.tick_params(labelsize=8)
    bar.set_label("attention weight" + (" (below 0: orange)" if least < 0 else ""), fontsize=9)
    bar.outline.set_visible(False)
    _set_title(figure, title)
    save_figure(figure, path, dpi=130)


def draw_heat(cam: Heat, title: str, path: Path) -> None:
    """The image, with the heat overlaid, if any."""
    height, width = cam.image.shape[-2:]
    side = 3.2
    figure = new_figure((2 * side + 1.4, min(2.0, max(0.4, height / width)) * side + 1.1))
    pixels = cam.image.permute(1, 2, 0).squeeze(-1).numpy()
    both = figure.subplots(1, 2)
    for axes in both:
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, origin="lower" if cam.axes else "upper")
        axes.set_xticks([])
        axes.set_yticks([])
        if cam.axes:
            axes.set_xlabel(cam.axes[1], fontsize=8)
    if cam.axes:
        both[0].set_ylabel(cam.axes[0], fontsize=8)
    rows, columns = cam.size
    if cam.heat is None:
        both[1].set_title(f"its last map is {rows} x {columns}: nothing to show", fontsize=9)
    else:
        heat = cam.heat.numpy()
        options = {
            "cmap": "plasma",
            "vmin": 0,
            "vmax": 1,
            "origin": "lower" if cam.axes else "upper",
        }
        image = both[1].imshow(heat, alpha=0.15 + 0.5 * cam.heat.nan_to_num().numpy(), **options)
        both[1].set_title(f"{cam.method}, from {rows} x {columns}", fontsize=9)
        bar = figure.colorbar(image, ax=both, fraction=0.05, pad=0.02, ticks=[0, 0.5, 1])
        bar.solids.set_alpha(1)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("of the greatest", fontsize=9)
        bar.outline.set_visible(False)
    _set_title(figure, plain(title))
    save_figure(figure, path, dpi=130)


def draw_rows(rows: dict[str, Tensor], title: str, path: Path) -> None:
    """Named rows of images (B, C, H, W) with pixels in 0..1, one above the other."""
    count = len(next(iter(rows.values())))
    figure = new_figure((1.1 * count + 1.1, 1.1 * len(rows) + 0.5))
    grid = figure.subplots(len(rows), count, squeeze=False)
    for (name, images), line in zip(rows.items(), grid, strict=True):
        for image, axes in zip(images, line, strict=True):
            axes.imshow(
                image.permute(1, 2, 0).squeeze(-1).numpy(),
                cmap="gray",
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    _set_title(figure, plain(title))
    save_figure(figure, path, dpi=130)


def _set_title(figure: Any, title: str) -> None:
    """Set the figure's title, as far as there is room."""
    room = int(figure.get_size_inches()[0] / 0.085)
    figure.suptitle(title if len(title) <= room else title[:room].rstrip("\\") + "…", fontsize=10)


def _name_axes(axes: Any, names: list[str], step: int, left: bool, below: bool) -> None:
    """Label every `step`-th token on the left and below, as asked for."""
    places = list(range(0, len(names), step))
    style = {"fontsize": 6.5, "family": "DejaVu Sans Mono"}
    axes.set_xticks(
        places if below else [], [names[i] for i in places] if below else [], rotation=90, **style
    )
    axes.set_yticks(places if left else [], [names[i] for i in places] if left else [], **style)
    axes.tick_params(length=0 if step == 1 else 2, pad=1)
