"""All heads as small multiples: layers down, heads across, with the class of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigmodel_cli.attend.colours import CLASSES
from bigmodel_cli.attend.look import Layer, Look
from bigmodel_cli.attend.picture.frame import (
    LEAST_WIDTH,
    PictureOptions,
    draw_caption,
    draw_header,
    draw_scales,
    facts_of,
    finish,
    scales,
)
from bigmodel_cli.attend.picture.maps import (
    Array,
    blocks_of,
    cells,
    draw_map,
    kind_of,
    number_of,
    pooled,
)
from bigmodel_cli.attend.picture.sheet import GREY, MARGIN, POINT, Sheet
from bigmodel_cli.attend.telling import left_out

WIDTH, HEIGHT = 2000, 2700
"""Pixels that maps together take at most, unless each would be smaller than `LEAST`."""
LEAST, MOST = 84, 520
FINEST = 2
"""Pixels of a cell, at least: a line of single cells is still seen in print."""
GAP = 14


def draw_grid(look: Look, path: Path, options: PictureOptions) -> None:
    """Every head as a small map."""
    layers = look.layers
    sheet, across = Sheet(), max(layer.heads for layer in layers)
    side = min(MOST, (WIDTH - GAP * across) / across, HEIGHT / len(layers) - 40)
    shapes = [_cell(layer, max(LEAST, side), options.measure) for layer in layers]
    pitch = GAP + max(wide for _, _, wide, _ in shapes)
    strip = 20 if pitch < 110 else 30
    left = MARGIN + 100
    width = max(LEAST_WIDTH, left + across * pitch - GAP - MARGIN)
    y, group = draw_header(sheet, look, width, facts_of(look, layers)), ""
    used = scales(layers, options.measure)
    for place in by_kind(layers):
        layer, scale, (by, cell, wide, high) = layers[place], used[place], shapes[place]
        if (named := kind_of(layer)) != group:
            y = draw_heading(sheet, y, named, [left + h * pitch + wide / 2 for h in range(across)])
            draw_axes_names(sheet, left - 18, y - 24, y + strip + high / 2)
            group = named
        sheet.text(left - 18, y + strip + high / 2, str(number_of(layer, place)), 6.5, ha="right")
        for head in range(layer.heads):
            x = left + head * pitch
            values, share = shown(layer, head, options)
            strip_of(sheet, x, y, strip, layer.letters[head : head + 1], share)
            values = pooled(values, by, by, options.measure)
            draw_map(sheet, x, y + strip, values, scale, cell)
        y += strip + high + GAP
    most = max(by for by, _, _, _ in shapes)
    y = draw_scales(sheet, y + 20, layers, options.measure, width, most)
    how = (
        "Layers by the numbers on the left, heads by those above. In each map queries (positions"
        " that look) go down and keys (positions looked at) across; blank: not seen."
    )
    finish(sheet, path, width, draw_caption(sheet, y + 10, look, width, how))


def shown(layer: Layer, head: int, options: PictureOptions) -> tuple[Array, float | None]:
    """The map of a head (R, C), and the sink's share where it is left out."""
    values = blocks_of(layer, options.measure)[head]
    if options.sink or not left_out(layer, head):
        return values, None
    values = values.copy()
    values[:, 0] = np.nan
    return values, float(layer.statistics.sink[head])


def by_kind(layers: Sequence[Layer]) -> list[int]:
    """The places of layers, those of one kind together."""
    kinds = list(dict.fromkeys(kind_of(layer) for layer in layers))
    return sorted(range(len(layers)), key=lambda place: kinds.index(kind_of(layers[place])))


def strip_of(
    sheet: Sheet, x: float, y: float, height: int, letter: str, share: float | None
) -> None:
    """What is said above a map: the letter of its class, and the share of a sink left out."""
    size = height - 6
    if letter in CLASSES:
        sheet.chip(x, y, size, letter, CLASSES[letter])
    if share is not None:
        text = f"sink {100 * share:.0f} %"
        sheet.text(x + size + 8, y + size / 2, text, 0.75 * size / POINT, color=GREY)


def draw_heading(sheet: Sheet, y: float, text: str, places: Sequence[float]) -> float:
    """The name of a group of layers, and the numbers of its heads."""
    sheet.text(MARGIN, y + 14, text, 7, weight="bold")
    for head, place in enumerate(places):
        sheet.text(place, y + 50, str(head), 6.5, ha="center")
    return y + 74


def draw_axes_names(sheet: Sheet, right: float, above: float, middle: float) -> None:
    """What the numbers of columns and rows count; the first ends at `right`."""
    sheet.text(right, above, "head", 6, ha="right", color=GREY)
    sheet.text(MARGIN + 12, middle, "layer", 6, color=GREY, ha="center", upwards=True)


def _cell(layer: Layer, side: float, measure: str) -> tuple[int, tuple[int, int], int, int]:
    """How many blocks a cell stands for, its pixels across and down, and the map's."""
    rows, columns = blocks_of(layer, measure).shape[1:]
    by, size = cells(max(rows, columns), side / FINEST)
    size *= FINEST
    rows, columns = math.ceil(rows / by), math.ceil(columns / by)
    least = side / 5  # of maps that are far from square
    across, down = max(size, math.ceil(least / columns)), max(size, math.ceil(least / rows))
    return by, (across, down), columns * across, rows * down
