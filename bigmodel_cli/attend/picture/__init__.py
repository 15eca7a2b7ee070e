"""Pictures of what `attend` found, for papers: PNG, PDF or SVG by the file's ending."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.picture.frame import PictureOptions
from bigmodel_cli.attend.picture.grid import draw_grid
from bigmodel_cli.attend.picture.large import draw_large
from bigmodel_cli.attend.picture.plain_maps import draw_heads, draw_heat, draw_rows
from bigmodel_cli.attend.picture.query import draw_query
from bigmodel_cli.errors import SpecError

__all__ = ["PictureOptions", "draw", "draw_heads", "draw_heat", "draw_rows"]

FEW = 4
"""Heads that are drawn large where none is chosen."""


def draw(look: Look, path: Path, options: PictureOptions | None = None) -> None:
    """Write the picture that fits: all heads as small multiples, or a few of them large.

    Raises `SpecError` for heads and layers that are not there, `ResourceError` where the file
    cannot be written.
    """
    options = options or PictureOptions()
    chosen = _layers(look, options.layers)
    heads = options.heads
    if options.query:
        draw_query(look, chosen, path, options)
        return
    if heads is None:
        every = [(place, head) for place in chosen for head in range(look.layers[place].heads)]
        if len(every) > FEW:
            draw_grid(look, chosen, path, options)
            return
        heads = every
    draw_large(look, heads, path, options)


def _layers(look: Look, layers: Sequence[int] | None) -> Sequence[int]:
    if not look.layers:
        raise SpecError("this model has no attention to draw")
    return range(len(look.layers)) if layers is None else layers
