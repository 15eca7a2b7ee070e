"""Pictures of what `attend` found, for papers: PNG, PDF or SVG by the file's ending."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.picture.alignment import draw_alignment
from bigmodel_cli.attend.picture.apart import draw_apart
from bigmodel_cli.attend.picture.course import draw_course
from bigmodel_cli.attend.picture.frame import PictureOptions
from bigmodel_cli.attend.picture.grid import draw_grid
from bigmodel_cli.attend.picture.heat import draw_heat_over
from bigmodel_cli.attend.picture.large import draw_large
from bigmodel_cli.attend.picture.lens import draw_lens
from bigmodel_cli.attend.picture.patches import draw_patches
from bigmodel_cli.attend.picture.query import draw_query
from bigmodel_cli.attend.picture.rows import draw_rows
from bigmodel_cli.attend.picture.times import draw_times
from bigmodel_cli.errors import SpecError

__all__ = [
    "PictureOptions",
    "draw",
    "draw_alignment",
    "draw_apart",
    "draw_course",
    "draw_rows",
]

FEW = 4
"""Heads that are drawn large where none is chosen."""


def draw(look: Look, path: Path, options: PictureOptions | None = None) -> None:
    """Write the picture that fits: all heads as small multiples, or a few of them large; of an
    image's patches what one of them reads; of an image alone the map over it; and what is asked for
    by the options.

    Raises `SpecError` where there is nothing to draw, `ResourceError` where the file cannot be
    written.
    """
    options = options or PictureOptions()
    if options.lens:
        draw_lens(look, path)
    elif options.told and look.told.alignment is not None:
        draw_alignment(look.told.alignment, path, look)
    elif options.told and (times := look.told.times) and times.words and look.told.heard:
        draw_times(times, look.told.heard, path, look)
    elif not look.layers:
        if look.heat is None:
            raise SpecError("this model has no attention to draw")
        draw_heat_over(look, path)
    elif look.layers[0].keys.grid is not None and look.layers[0].kind != "mixing":
        draw_patches(look, path, options.key and not options.query)
    elif options.query or options.key:
        draw_query(look, path, options)
    else:
        every = [(p, head) for p, layer in enumerate(look.layers) for head in range(layer.heads)]
        if options.heads is None and len(every) > FEW:
            draw_grid(look, path, options)
        else:
            draw_large(look, options.heads or every, path, options)
