"""Images: what one patch, or the class token, reads in each head, and maps over the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bigmodel_cli.attend.look import Layer, Look
from bigmodel_cli.attend.picture.frame import (
    LEAST_WIDTH,
    draw_caption,
    draw_classes,
    draw_header,
    facts_of,
    finish,
)
from bigmodel_cli.attend.picture.grid import (
    GAP,
    HEIGHT,
    LEAST,
    WIDTH,
    draw_axes_names,
    draw_heading,
    strip_of,
)
from bigmodel_cli.attend.picture.heat import draw_frame, draw_image, image_width
from bigmodel_cli.attend.picture.maps import (
    Array,
    Scale,
    draw_bar,
    draw_map,
    number_of,
    scale_of,
    weight_title,
)
from bigmodel_cli.attend.picture.sheet import MARGIN, Sheet, array_of
from bigmodel_cli.attend.telling import turned
from bigmodel_cli.pictures import plain, plain_names

MOST = 300
"""Pixels of a head's map, at most."""


def draw_patches(look: Look, path: Path, key: bool = False) -> None:
    """The image, the map over it where there is one, and what the query reads in every head, or
    who reads the `key`.
    """
    layers = [turned(layer) for layer in look.layers] if key else look.layers
    rows, columns = layers[0].keys.grid or (1, 1)
    across = max(layer.heads for layer in layers)
    room = min(MOST, (WIDTH - 2 * GAP * across) / across, HEIGHT / len(layers) - 40)
    cell = max(2, int(max(LEAST, room) // max(rows, columns)))
    special = len(layers[0].keys) - rows * columns
    pitch = columns * cell + (max(cell, 8) + 8 if special else 0) + 2 * GAP
    sheet, left, strip = Sheet(), MARGIN + 100, 30
    width = max(LEAST_WIDTH, left + across * pitch - MARGIN, image_width(look))
    y = draw_header(sheet, look, width, facts_of(look, layers))
    y = draw_image(sheet, look, y, layers[0]) + 40
    title = f"Who reads {_named(layers[0])}" if key else f"What {_named(layers[0])} reads"
    places = [left + head * pitch + columns * cell / 2 + GAP / 2 for head in range(across)]
    y = draw_heading(sheet, y, title, places)
    draw_axes_names(sheet, left - 18, y - 24, y + strip + rows * cell / 2)
    scale = scale_of(layers)
    for place, layer in enumerate(layers):
        high = rows * cell
        number = str(number_of(layer, place))
        sheet.text(left - 18, y + strip + high / 2, number, 6.5, ha="right")
        for head in range(layer.heads):
            x = left + head * pitch
            strip_of(sheet, x, y, strip, layer.letters[head : head + 1], None)
            _draw_head(sheet, x, y + strip, layer, head, scale, cell)
        y += strip + high + GAP
    y += 20
    bottom = draw_bar(sheet, MARGIN, y, scale, 640, weight_title(scale))
    y = draw_classes(sheet, MARGIN + 720, y, bottom, layers, width)
    apart = _apart(layers[0])
    how = "Layers by the numbers on the left, heads by those above; each cell is a patch." + (
        f" The column on the right of a map, from its top: {apart}." if apart else ""
    )
    finish(sheet, path, width, draw_caption(sheet, y + 10, look, width, how))


def _draw_head(
    sheet: Sheet, x: float, y: float, layer: Layer, head: int, scale: Scale, cell: int
) -> None:
    """What the query reads of the patches, and beside them of what is none."""
    grid, others = split(array_of(layer.read)[head], layer)
    rows, columns = grid.shape
    draw_map(sheet, x, y, grid, scale, (cell, cell))
    if len(others):
        wide = max(cell, 8)
        down = min(wide, rows * cell / len(others))
        draw_map(sheet, x + columns * cell + 8, y, others[:, None], scale, (wide, down))
    place = layer.query - layer.queries.first
    if layer.queries.grid is not None and 0 <= place < rows * columns:
        row, column = divmod(place, columns)
        draw_frame(sheet, x + column * cell, y + row * cell, cell, cell)


def split(values: Array, layer: Layer) -> tuple[Array, Array]:
    """(S) -> the patches (rows, columns), and the positions that are none."""
    rows, columns = layer.keys.grid or (1, len(values))
    first, count = layer.keys.first, rows * columns
    patches = values[first : first + count].reshape(rows, columns)
    return patches, np.concatenate([values[:first], values[first + count :]])


def _named(layer: Layer) -> str:
    side, place = layer.queries, layer.query - layer.queries.first
    rows, columns = side.grid or (1, len(side))
    if 0 <= place < rows * columns:
        row, column = divmod(place, columns)
        return f"the patch in row {row}, column {column} (marked)"
    return f"the {plain(side.labels[layer.query])}"


def _apart(layer: Layer) -> str:
    """The positions that are no patches, in words."""
    rows, columns = layer.keys.grid or (1, len(layer.keys))
    first, count = layer.keys.first, rows * columns
    names = [*layer.keys.labels[:first], *layer.keys.labels[first + count :]]
    return ", ".join(plain_names(names))
