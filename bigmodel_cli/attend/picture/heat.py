"""An image, the map over it, and how the map did when it was put to the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.attend.heat import Heat, Trial
from bigmodel_cli.attend.look import Layer, Look
from bigmodel_cli.attend.picture.frame import LEAST_WIDTH, draw_caption, draw_header, finish
from bigmodel_cli.attend.picture.labels import label_width
from bigmodel_cli.attend.picture.maps import Array, Scale
from bigmodel_cli.attend.picture.sheet import (
    GREY,
    INK,
    LINE,
    MARGIN,
    SANS,
    Pixels,
    Sheet,
    array_of,
    cut_to,
    width_of,
)
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.pictures import plain, plain_names

IMAGE = 620
"""Pixels of an image's longer side, and of the test's plot."""
ROOM = 480
"""Pixels from one panel to the next, at least, less `GAP`: a title fits in."""
GAP = 60
SHARE = 0.6
"""Of a map's colours over an image, which is grey below them."""
BLUE, ORANGE = "#0050b6", "#e5791b"
TITLE = 6.5


def draw_image(sheet: Sheet, look: Look, y: float, layer: Layer | None) -> float:
    """The image, with the query's patch marked, the map over it, and its test; returns where they
    end.
    """
    if look.heat is None:
        return y
    heat, x, top = look.heat, float(MARGIN), y + 50
    size, bottom = size_of(heat), y + 50
    if heat.axes:
        beside, bottom = _draw_axes(sheet, x, top, size, heat)
        x += beside
    sheet.text(x, y + 16, "what the network is given", TITLE, weight="bold")
    sheet.image(x, top, pixels_of_image(heat), *size)
    if layer is not None:
        _mark_query(sheet, x, top, size, layer)
    bottom, room = max(bottom, top + size[1]), max(ROOM, size[0])
    x += room + GAP
    if heat.heat is not None:
        room = map_room(heat)
        sheet.text(
            x, y + 16, cut_to(_map_title(heat), room, TITLE, bold=True), TITLE, weight="bold"
        )
        sheet.image(x, top, overlay(heat), *size)
        below = _draw_linear(sheet, x, top + size[1] + 16, Scale(1, dark=True), max(size[0], 240))
        bottom = max(bottom, below)
        x += room + GAP + PLOT_LABELS
        if heat.trial is not None:
            sheet.text(x, y + 16, "a test of the map", TITLE, weight="bold")
            bottom = max(bottom, _draw_trial(sheet, x, top, heat.trial))
    return bottom


PLOT_LABELS = 90
"""Pixels that the numbers and the label of a plot's vertical axis take."""
TICK = 30
"""Pixels from one tick's label to the next, at least."""


def map_room(heat: Heat) -> float:
    """Pixels across that the map takes with its title, which is cut where it is far longer."""
    wide = max(ROOM, size_of(heat)[0])
    return max(wide, min(wide + 2 * GAP, width_of(_map_title(heat), TITLE, bold=True)))


def _map_title(heat: Heat) -> str:
    return f"{plain(heat.method)} from {' × '.join(map(str, heat.size))}"


def size_of(heat: Heat) -> tuple[float, float]:
    """Pixels of the image, across and down: a spectrogram is wider than it is high."""
    high, wide = heat.image.shape[-2:]
    if heat.axes:
        return float(IMAGE), IMAGE * 0.6
    return max(8, IMAGE * wide / max(high, wide)), max(8, IMAGE * high / max(high, wide))


def _draw_axes(
    sheet: Sheet, x: float, y: float, size: tuple[float, float], heat: Heat
) -> tuple[float, float]:
    """What stands on the left of a spectrogram and below it; returns how wide and where it ends."""
    assert heat.axes is not None
    upwards, across = plain_names(heat.axes)
    hertz, seconds = heat.ticks or ([], [])
    left = axes_width(heat)
    rows, columns = heat.image.shape[-2:]
    sheet.text(x + 14, y + size[1] / 2, upwards, TITLE, ha="center", upwards=True)
    marks, last = [], y + size[1] + TICK
    x += left
    for place, name in hertz:
        at = y + size[1] * (1 - place / rows)
        marks.append(np.array([(x - 8, at), (x, at)]))
        if at <= last - TICK:
            sheet.text(x - 14, at, name, 6, ha="right")
            last = at
    for place, name in seconds:
        at = x + size[0] * place / columns
        marks.append(np.array([(at, y + size[1]), (at, y + size[1] + 8)]))
        sheet.text(at, y + size[1] + 24, name, 6, ha="center")
    sheet.lines(marks, LINE, 0.5)
    bottom = y + size[1] + 26 + 32 * bool(seconds)
    sheet.text(x + size[0] / 2, bottom, across, TITLE, ha="center")
    return left, bottom + 30


def axes_width(heat: Heat) -> float:
    """Pixels that the vertical axis of a spectrogram takes; 0 of other images."""
    if heat.axes is None:
        return 0.0
    names = [name for _, name in heat.ticks[0]] if heat.ticks else []
    return 40 + (label_width(names, 6, SANS) + 20 if names else 0)


def _mark_query(sheet: Sheet, x: float, y: float, size: tuple[float, float], layer: Layer) -> None:
    if layer.queries.grid is None:
        return
    rows, columns = layer.queries.grid
    place = layer.query - layer.queries.first
    if 0 <= place < rows * columns:
        row, column = divmod(place, columns)
        part = size[0] / columns, size[1] / rows
        draw_frame(sheet, x + column * part[0], y + row * part[1], *part)


def image_width(look: Look) -> float:
    """Pixels that the image, the map and its test take."""
    heat = look.heat
    if heat is None:
        return 0
    room = max(ROOM, size_of(heat)[0])
    panels = room + (GAP + map_room(heat) if heat.heat is not None else 0)
    plot = GAP + PLOT_LABELS + IMAGE + 20 if heat.trial is not None else 0
    return axes_width(heat) + panels + plot


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


def _draw_trial(sheet: Sheet, x: float, y: float, trial: Trial) -> float:
    """What the class keeps as pixels are deleted and shown, by the map and by random ones; returns
    where it ends.
    """
    high = IMAGE
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
    return y + high + 184


def _tidy(axes: Any, across: str, up: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=6, length=2)
    axes.set_xlabel(across, fontsize=6.5)
    axes.set_ylabel(up, fontsize=6.5)


def draw_frame(sheet: Sheet, x: float, y: float, wide: float, high: float) -> None:
    """A patch that is marked: dark with a light line around it, seen on all colours."""
    for away, colour, width in ((3, "#ffffff", 1.0), (0, INK, 1.0)):
        low = np.array([x - away, y - away])
        far = np.array([x + wide + away, y + high + away])
        line = [low, (far[0], low[1]), far, (low[0], far[1]), low]
        sheet.lines([np.array(line)], colour, width)
