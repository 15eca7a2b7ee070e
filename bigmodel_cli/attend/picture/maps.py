"""Maps of weights: how they become colours, how many pixels their cells have, and their outline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.attend.look import Layer
from bigmodel_cli.attend.picture.sheet import (
    GREY,
    Pixels,
    Sheet,
    array_of,
    pixels_of,
    width_of,
)
from bigmodel_cli.pictures import plain

Array = NDArray[np.float64]
TICKS = (0.01, 0.1)
LINE_WIDTH = 1.2
"""Pixels by which a line around a map is outside of it: about half as wide as it is."""
KINDS = {
    "self": "{0}",
    "cross": "{0} reads {1}",
    "mixing": "{0}, mixed without attention",
}


@dataclass(frozen=True)
class Scale:
    """How weights become colours: shares from 0 to 1, or signed ones from -`limit` to `limit`.

    Both are logarithmic above one part in `keys`, see `colours.level`. A `dark` one is for maps
    over an image: what is bright is large.
    """

    keys: int
    limit: float = 1.0
    signed: bool = False
    dark: bool = False

    @property
    def table(self) -> Pixels:
        """Its colours (N, 4)."""
        return pixels_of("diverging" if self.signed else "sequential", self.dark)

    def places(self, values: Array) -> Array:
        """Where on the scale: 0 to 1, or -1 to 1. NaN stays NaN."""
        parts = np.clip(values / self.limit, -1 if self.signed else 0, 1)
        return np.asarray(
            np.sign(parts) * np.log1p(np.abs(parts) * self.keys) / np.log1p(self.keys)
        )

    def coloured(self, values: Array) -> Pixels:
        """(R, C) -> (R, C, 4)   NaN becomes transparent."""
        places = self.places(values)
        if self.signed:
            places = (places + 1) / 2
        rows = np.round(np.nan_to_num(places) * (len(self.table) - 1)).astype(int)
        pixels = self.table[rows]
        pixels[np.isnan(places)] = 0
        return np.asarray(pixels)

    def ticks(self) -> list[tuple[float, str]]:
        """Weights and their names, those that matter most first."""
        if self.signed:
            parts = [0, -1, 1, -0.1, 0.1]
            return [(part * self.limit, f"{part * self.limit:.2g}") for part in parts]
        even = [(1 / self.keys, "1/T")] if self.keys > 1 else []
        return [(0.0, "0"), (1.0, "1"), *even, *((tick, f"{tick:g}") for tick in TICKS)]


def signed(layer: Layer) -> bool:
    """Whether its weights may be negative, so that they are no shares."""
    return layer.signed or layer.kind == "mixing"


def kind_of(layer: Layer) -> str:
    """Which side looks at which, in words."""
    return KINDS[layer.kind].format(plain(layer.queries.name), plain(layer.keys.name))


def number_of(layer: Layer, place: int) -> int:
    """What a layer is called: its number in the model, or its place in a look made by hand."""
    return place if layer.number is None else layer.number


def scale_of(layers: Sequence[Layer], measure: str = "most") -> Scale:
    """One scale for layers that are all signed, or all not."""
    keys = max(len(layer.keys) for layer in layers)
    if not signed(layers[0]):
        return Scale(keys)
    limits = [np.nanmax(np.abs(blocks_of(layer, measure)), initial=0.0) for layer in layers]
    return Scale(keys, float(max(limits)) or 1.0, signed=True)


def blocks_of(layer: Layer, measure: str) -> Array:
    """(H, R, C)   the largest weight of each block, or the mean; NaN where nothing is seen."""
    return array_of(layer.blocks.most if measure == "most" else layer.blocks.mean)


def pooled(values: Array, rows: int, columns: int, measure: str = "most") -> Array:
    """(R, C) -> (ceil(R / rows), ceil(C / columns))   of each block the value that is farthest from
    zero, or the mean; NaN where all are.
    """
    if rows == columns == 1:
        return values
    padded = np.pad(
        values,
        [(0, -values.shape[0] % rows), (0, -values.shape[1] % columns)],
        constant_values=np.nan,
    )
    cut = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    blank = np.isnan(cut).all((1, 3))
    filled = np.nan_to_num(cut)
    if measure == "mean":
        counts = np.maximum(1, (~np.isnan(cut)).sum((1, 3)))
        found = filled.sum((1, 3)) / counts
    else:
        most, least = filled.max((1, 3)), filled.min((1, 3))
        found = np.where(most >= -least, most, least)
    return np.asarray(np.where(blank, np.nan, found))


def cells(count: int, room: float) -> tuple[int, int]:
    """How many values one cell stands for, and how many pixels it has, in that many pixels."""
    if count <= room:
        return 1, max(1, int(room // count))
    return math.ceil(count / room), 1


def outline(values: Array) -> Array:
    """A closed line (N, 2) of columns and rows around the values of a map that are not NaN."""
    seen = ~np.isnan(values)
    rows = np.flatnonzero(seen.any(1))
    if not len(rows):
        return np.zeros((0, 2))
    first = seen[rows].argmax(1)
    after = seen.shape[1] - seen[rows, ::-1].argmax(1)
    down = np.stack([rows, rows + 1], 1).ravel()
    right = np.stack([np.repeat(after, 2), down], 1)
    left = np.stack([np.repeat(first, 2), down], 1)
    return np.concatenate([right, left[::-1], right[:1]]).astype(float)


def beside(line: Array) -> Array:
    """How far (N, 2) each point of an outline is moved in pixels, so that it covers no cell."""
    half = len(line) // 2
    moved = np.full(line.shape, float(LINE_WIDTH))
    moved[half:-1, 0] *= -1  # the left
    moved[: half - 1, 1] *= -1  # stairs that go down and to the right: their upper side
    moved[-2, 1] *= -1
    moved[-1] = moved[0]
    return moved


def draw_map(
    sheet: Sheet, x: float, y: float, values: Array, scale: Scale, cell: tuple[float, float]
) -> None:
    """A map whose cells are that wide and high, with a line around what is seen."""
    rows, columns = values.shape
    sheet.image(x, y, scale.coloured(values), columns * cell[0], rows * cell[1])
    line = outline(values)
    if len(line):
        sheet.lines([line * np.array(cell) + beside(line) + np.array([x, y])])


def draw_bar(sheet: Sheet, x: float, y: float, scale: Scale, width: int, title: str) -> float:
    """A horizontal bar of a scale with its ticks below and its title above; returns its bottom."""
    sheet.text(x, y + 14, title, 6, color=GREY)
    x, y, height = x + 10 + 16 * scale.signed, y + 38, 26
    places = np.linspace(-1 if scale.signed else 0, 1, width)
    parts = (places + 1) / 2 if scale.signed else places
    strip = scale.table[np.round(parts * (len(scale.table) - 1)).astype(int)][None]
    sheet.image(x, y, strip, width, height)
    frame = np.array([(0, 0), (width, 0), (width, height), (0, height), (0, 0)])
    marks, taken = [frame + np.array([x, y])], list[tuple[float, float]]()
    for value, name in scale.ticks():
        (place,) = scale.places(np.array([value]))
        at = x + width * ((place + 1) / 2 if scale.signed else place)
        marks.append(np.array([(at, y + height), (at, y + height + 8)]))
        half = width_of(name, 6) / 2 + 5
        if all(at + half < low or at - half > high for low, high in taken):
            sheet.text(at, y + height + 26, name, 6, ha="center")
            taken.append((at - half, at + half))
    sheet.lines(marks)
    return y + height + 42


def bar_title(layers: Sequence[Layer], scale: Scale, measure: str, pooled_by: int = 1) -> str:
    """What the colours of a scale mean, and of which blocks."""
    what = weight_title(scale)
    sizes = {(one.blocks.rows * pooled_by, one.blocks.columns * pooled_by) for one in layers}
    sizes.discard((1, 1))
    if sizes:
        each = " or ".join(f"{rows} × {columns}" for rows, columns in sorted(sizes))
        what += f"; {'largest' if measure == 'most' else 'mean'} of each {each} block"
    return what


def weight_title(scale: Scale) -> str:
    """What the colours of a scale of weights mean."""
    if scale.signed:
        return "signed weight; log scale of its size"
    return f"attention weight; log scale, T = {scale.keys:,}"
