"""The same as PNG pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.attend.gradcam import Heat
from bigmodel_cli.attend.heads import Heads
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.pictures import new_figure, plain, save_figure

MOST_LABELS = 40


def draw_heads(heads: Heads, path: Path) -> None:
    """A grid of maps: a row for each layer, a column for each head; token labels where they can be read."""
    columns = max(len(w) for w in heads.weights)
    count = len(heads.tokens)
    side = min(4.0, max(1.8, 0.14 * count)) if count <= MOST_LABELS else 2.4
    figure = new_figure((columns * side + 1.2, len(heads.layers) * side + 0.9))
    grid = figure.subplots(len(heads.layers), columns, squeeze=False)
    for row, (name, weights) in enumerate(zip(heads.layers, heads.weights, strict=True)):
        for column in range(columns):
            axes = grid[row][column]
            if column >= len(weights):
                axes.set_axis_off()
                continue
            axes.imshow(weights[column].numpy(), cmap="magma", vmin=0, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(f"head {column}", fontsize=9)
            if column == 0:
                axes.set_ylabel(name, fontsize=8)
                if count <= MOST_LABELS:
                    _token_ticks(axes.yaxis, axes.set_yticks, heads.tokens)
            if row == len(heads.layers) - 1 and count <= MOST_LABELS:
                _token_ticks(axes.xaxis, axes.set_xticks, heads.tokens)
    figure.supxlabel("position looked at", fontsize=9)
    save_figure(figure, path, dpi=130)


def draw_heat(cam: Heat, name: str, path: Path) -> None:
    """The image, and the heat laid over it where there is one."""
    figure = new_figure((7, 3.8))
    left, right = figure.subplots(1, 2)
    pixels = cam.image.permute(1, 2, 0).squeeze(-1).numpy()
    for axes in (left, right):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
    if cam.heat is not None:
        right.imshow(cam.heat.numpy(), cmap="magma", alpha=0.6, vmin=0, vmax=1)
    left.set_title(plain(name), fontsize=10)
    alone = "" if cam.heat is not None else "; its last map is 1 x 1"
    right.set_title(plain(f"{cam.caption}{alone}"), fontsize=10)
    save_figure(figure, path, dpi=130)


def draw_rows(rows: dict[str, Tensor], path: Path) -> None:
    """Named rows of images (B, C, H, W) with pixels in 0..1, one above the other."""
    count = len(next(iter(rows.values())))
    figure = new_figure((1.1 * count + 0.6, 1.1 * len(rows) + 0.2))
    grid = figure.subplots(len(rows), count, squeeze=False)
    for (name, images), line in zip(rows.items(), grid, strict=True):
        for image, axes in zip(images, line, strict=True):
            axes.imshow(
                image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, fontsize=9)
    save_figure(figure, path, dpi=130)


def _token_ticks(axis: Any, set_ticks: Any, tokens: list[str]) -> None:
    labels = [plain(t) or "␣" for t in (repr(t)[1:-1] if t.strip() != t else t for t in tokens)]
    rotation = 90 if axis.axis_name == "x" else 0
    set_ticks(range(len(tokens)), labels, fontsize=6, rotation=rotation, family="DejaVu Sans Mono")
    axis.set_tick_params(length=0, pad=1)
