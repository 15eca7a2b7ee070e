"""Named rows of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.lazy import Tensor
from bigmodel_cli.pictures import new_figure, plain, save_figure


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
