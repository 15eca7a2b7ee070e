"""Images: what one patch, or the class token, reads in each head, and maps over the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.attend.heat import Heat, Trial
from bigmodel_cli.attend.look import Layer, Look
from bigmodel_cli.attend.picture.frame import (
    LEAST_WIDTH,
    draw_caption,
    draw_classes,
    draw_header,
    facts_of,
    finish,
)
from bigmodel_cli.attend.picture.grid import GAP, HEIGHT, LEAST, WIDTH, draw_heading, strip_of
from bigmodel_cli.attend.picture.maps import (
    Array,
    Scale,
    draw_bar,
    draw_map,
    number_of,
    scale_of,
    weight_title,
)
from bigmodel_cli.attend.picture.sheet import GREY, INK, MARGIN, Pixels, Sheet, array_of, cut_to
from bigmodel_cli.attend.telling import turned
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.pictures import plain, plain_names

MOST = 300
"""Pixels of a head's map, at most."""
IMAGE = 620
SHARE = 0.6
"""Of a map's colours over an image, which is grey below them."""
BLUE, ORANGE = "#0050b6", "#e5791b"


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
        _frame(sheet, x + column * cell, y + row * cell, cell, cell)


def split(values: Array, layer: Layer) -> tuple[Array, Array]:
    """(S) -> the patches (rows, columns), and the positions that are none."""
    rows, columns = layer.keys.grid or (1, len(values))
    first, count = layer.keys.first, rows * columns
    patches = values[first : first + count].reshape(rows, columns)
    return patches, np.concatenate([values[:first], values[first + count :]])


def draw_image(sheet: Sheet, look: Look, y: float, layer: Layer | None) -> float:
    """The image, with the query's patch marked, the map over it, and its test; returns where they
    end.
    """
    if look.heat is None:
        return y
    heat, x = look.heat, float(MARGIN)
    high, wide = heat.image.shape[-2:]
    size = (IMAGE * wide / max(high, wide), IMAGE * high / max(high, wide))
    if heat.axes:  # a spectrogram: as wide as it is high
        size = (float(IMAGE), IMAGE * 0.6)
        up, along = plain_names(heat.axes)
        sheet.text(x + 14, y + 50 + size[1] / 2, up, 6.5, ha="center", upwards=True)
        sheet.text(x + 40 + size[0] / 2, y + 76 + size[1], along, 6.5, ha="center")
        x += 40
    top = y + 50
    sheet.text(x, y + 16, "what the network is given", 6.5, weight="bold")
    sheet.image(x, top, pixels_of_image(heat), *size)
    if layer is not None and layer.queries.grid is not None:
        rows, columns = layer.queries.grid
        place = layer.query - layer.queries.first
        if 0 <= place < rows * columns:
            row, column = divmod(place, columns)
            part = size[0] / columns, size[1] / rows
            _frame(sheet, x + column * part[0], top + row * part[1], *part)
    x += size[0] + 60
    bottom = top + size[1] + (56 if heat.axes else 0)
    if heat.heat is not None:
        from_size = " × ".join(map(str, heat.size))
        name = cut_to(f"{plain(heat.method)} from {from_size}", 1.12 * size[0], 6.5)
        sheet.text(x, y + 16, name, 6.5, weight="bold")
        sheet.image(x, top, overlay(heat), *size)
        bar_top = top + size[1] + 16
        bar = Scale(1, dark=True)
        bottom = max(bottom, _draw_linear(sheet, x, bar_top, bar, size[0]))
        x += size[0] + 150
        if heat.trial is not None:
            _draw_trial(sheet, x, top, size[1], heat.trial)
            sheet.text(x, y + 16, "a test of the map", 6.5, weight="bold")
            bottom = max(bottom, top + size[1] + 184)
    return bottom


def image_width(look: Look) -> float:
    """Pixels that the image, the map and its test take."""
    if look.heat is None:
        return 0
    panels = 1 + (look.heat.heat is not None) * (1 + (look.heat.trial is not None))
    return panels * (IMAGE + 110) - 60


def draw_heat_over(look: Look, path: Path) -> None:
    """The map over an image, without heads."""
    sheet, heat = Sheet(), look.heat
    assert heat is not None
    width = max(LEAST_WIDTH, image_width(look))
    y = draw_header(sheet, look, width, [f"layer: {plain(heat.layer)}"] if heat.layer else [])
    y = draw_image(sheet, look, y, None)
    how = (
        "The map is in parts of its largest value, over the image in grey."
        if heat.heat is not None
        else ""
    )
    finish(sheet, path, width, draw_caption(sheet, y + 10, look, width, how, checked=False))


def pixels_of_image(heat: Heat) -> Pixels:
    """The image (H, W, 4), spectrograms with their low bands below."""
    return _opaque(_upright(heat, heat.image.permute(1, 2, 0)))


def overlay(heat: Heat) -> Pixels:
    """The map's colours (H, W, 4) over the image in grey."""
    assert heat.heat is not None
    image = _upright(heat, heat.image.permute(1, 2, 0))
    weights = np.array([0.2126, 0.7152, 0.0722]) if image.shape[-1] == 3 else np.ones(1)
    grey = (image * weights).sum(-1, keepdims=True).repeat(3, -1)
    places = np.nan_to_num(_upright(heat, heat.heat))
    table = Scale(1, dark=True).table[:, :3] / 255
    colours = table[np.round(np.clip(places, 0, 1) * (len(table) - 1)).astype(int)]
    return _opaque((1 - SHARE) * grey + SHARE * colours)


def _upright(heat: Heat, values: Tensor) -> Array:
    found = array_of(values)
    return found[::-1] if heat.axes else found


def _opaque(image: Array) -> Pixels:
    whole = np.clip(np.round(255 * image), 0, 255).astype(np.uint8)
    if whole.shape[-1] == 1:
        whole = whole.repeat(3, -1)
    return np.concatenate([whole, np.full((*whole.shape[:2], 1), 255, np.uint8)], -1)


def _draw_linear(sheet: Sheet, x: float, y: float, scale: Scale, width: float) -> float:
    """A bar from 0 to the largest value of a map."""
    sheet.image(x, y, scale.table[None], width, 24)
    for place, name in ((0, "0"), (0.5, "half"), (1, "largest")):
        side = "left" if place == 0 else "center" if place < 1 else "right"
        sheet.text(x + place * width, y + 42, name, 6, ha=side)
    return y + 60


def _draw_trial(sheet: Sheet, x: float, y: float, high: float, trial: Trial) -> None:
    """What the class keeps as pixels are deleted and shown, by the map and by random ones."""
    axes = sheet.inset(x, y, high, high)
    deleted = [1.0, *trial.deleted]
    shown = [trial.deleted[-1], *trial.inserted]
    shares = [0.0, *trial.shares]
    areas = trial.areas
    for values, colour, name, area, row in (
        (deleted, ORANGE, "deleted", areas[0], 0),
        (shown, BLUE, "shown alone", areas[1], 1),
    ):
        axes.plot(shares, values, color=colour, lw=1.2)
        said = f"{name}: area {area:.2f}"
        sheet.text(x, y + high + 112 + 28 * row, said, 6, color=colour)
    chance = np.array(trial.at_random)
    for column, colour in ((0, ORANGE), (1, BLUE)):
        axes.axhspan(
            chance[:, column].min(), chance[:, column].max(), color=colour, alpha=0.2, lw=0
        )
    _tidy(axes, "share of the pixels", "probability that the class keeps")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(1.0, *deleted, *shown, float(chance.max())) * 1.05)
    sheet.text(x, y + high + 168, "bands: areas of random maps", 6, color=GREY)


def _tidy(axes: Any, across: str, up: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=6, length=2)
    axes.set_xlabel(across, fontsize=6.5)
    axes.set_ylabel(up, fontsize=6.5)


def _frame(sheet: Sheet, x: float, y: float, wide: float, high: float) -> None:
    """A patch that is marked: dark with a light line around it, seen on all colours."""
    for away, colour, width in ((3, "#ffffff", 1.0), (0, INK, 1.0)):
        low = np.array([x - away, y - away])
        far = np.array([x + wide + away, y + high + away])
        line = [low, (far[0], low[1]), far, (low[0], far[1]), low]
        sheet.lines([np.array(line)], colour, width)


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
