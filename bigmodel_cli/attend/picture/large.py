"""A few heads as large maps with their tokens named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.attend import classes
from bigmodel_cli.attend.colours import CLASSES
from bigmodel_cli.attend.look import Layer, Look
from bigmodel_cli.attend.picture.frame import (
    CHIP,
    LEAST_WIDTH,
    PictureOptions,
    draw_caption,
    draw_header,
    draw_scales,
    facts_of,
    finish,
    scales,
)
from bigmodel_cli.attend.picture.grid import FINEST, shown
from bigmodel_cli.attend.picture.labels import PITCH, SIZE, label_width, named
from bigmodel_cli.attend.picture.maps import (
    Array,
    Scale,
    cells,
    draw_map,
    number_of,
    pooled,
    signed,
)
from bigmodel_cli.attend.picture.sheet import GREY, LINE, MARGIN, MONO, Sheet, width_of
from bigmodel_cli.pictures import plain_names

NAMED = 60
"""Tokens that are all named."""
WIDE = 2400
ONE, SEVERAL = 1560, 900
"""Pixels of a map's side, at most where tokens are few."""
GAP, TITLE = 70, 520
"""Pixels between maps, and of the title of one."""


@dataclass(frozen=True)
class _Panel:
    """A head's map, its cells in pixels, and the labels (place of the cell, text) of its axes."""

    layer: Layer
    number: int
    head: int
    values: Array
    share: float | None
    scale: Scale
    cell: tuple[int, int]
    rows: list[tuple[float, str]]
    columns: list[tuple[float, str]]
    by: int

    @property
    def margins(self) -> tuple[float, float]:
        """Pixels that labels take on the left and below."""
        return (
            label_width([name for _, name in self.rows], SIZE, MONO) + 66,
            label_width([name for _, name in self.columns], SIZE, MONO) + 66,
        )

    @property
    def size(self) -> tuple[float, float]:
        """Pixels of the map."""
        rows, columns = self.values.shape
        return columns * self.cell[0], rows * self.cell[1]


def draw_large(
    look: Look, heads: Sequence[tuple[int, int]], path: Path, options: PictureOptions
) -> None:
    """The chosen heads, several in a row where they fit."""
    places = list(dict.fromkeys(place for place, _ in heads))
    layers = [look.layers[place] for place in places]
    used = dict(zip(places, scales(layers, options.measure), strict=True))
    most = ONE if len(heads) == 1 else SEVERAL
    panels = [_panel(look, place, h, used[place], most, options) for place, h in heads]
    pitch = max(panel.margins[0] + max(TITLE, panel.size[0]) for panel in panels) + GAP
    across = min(len(panels), max(1, int((WIDE + GAP) // pitch)))
    sheet, width = Sheet(), max(LEAST_WIDTH, across * pitch - GAP)
    y = draw_header(sheet, look, width, facts_of(look, look.layers))
    for begin in range(0, len(panels), across):
        row = panels[begin : begin + across]
        for column, panel in enumerate(row):
            _draw_panel(sheet, MARGIN + column * pitch, y, panel)
        y += 92 + max(panel.size[1] + panel.margins[1] for panel in row) + 40
    y = draw_scales(
        sheet, y, layers, options.measure, width, max(panel.by for panel in panels), False
    )
    every = any(
        len(p.rows) < p.values.shape[0] or len(p.columns) < p.values.shape[1] for p in panels
    )
    how = "Each row is a query (a position that looks), each column a key; blank: not seen." + (
        " Not every position is named." if every else ""
    )
    finish(sheet, path, width, draw_caption(sheet, y + 10, look, width, how))


def _panel(
    look: Look, place: int, head: int, scale: Scale, most: int, options: PictureOptions
) -> _Panel:
    layer = look.layers[place]
    values, share = shown(layer, head, options)
    longest = max(values.shape)
    if longest <= NAMED:
        by, cell = 1, min(90, max(PITCH, most // longest))
    else:
        by, cell = cells(longest, most / FINEST)
        cell *= FINEST
    values = pooled(values, by, by, options.measure)
    down = max(cell, math.ceil(PITCH * min(NAMED, 4) / values.shape[0]) if by > 1 else cell)
    rows, columns = layer.blocks.rows * by, layer.blocks.columns * by
    return _Panel(
        layer, number_of(layer, place), head, values, share, scale, (cell, down),
        named(layer.queries, rows, values.shape[0], down),
        named(layer.keys, columns, values.shape[1], cell),
        by,
    )  # fmt: skip


def _draw_panel(sheet: Sheet, x: float, y: float, panel: _Panel) -> None:
    """One head: what it is above, the map, and the names of its rows and columns."""
    left, below = panel.margins
    wide, high = panel.size
    x += left
    _draw_title(sheet, x, y, panel)
    y += 92
    draw_map(sheet, x, y, panel.values, panel.scale, panel.cell)
    ticks = []
    for place, name in panel.rows:
        at = y + place * panel.cell[1]
        sheet.text(x - 14, at, name, SIZE, ha="right", family=MONO)
        ticks.append([(x - 8, at), (x, at)])
    for place, name in panel.columns:
        at = x + place * panel.cell[0]
        sheet.text(at, y + high + 14, name, SIZE, ha="right", family=MONO, upwards=True)
        ticks.append([(at, y + high), (at, y + high + 8)])
    sheet.lines(ticks, LINE, 0.4)
    names = plain_names([panel.layer.queries.name, panel.layer.keys.name])
    sheet.text(x - left + 14, y + high / 2, f"query: {names[0]}", 6.5, ha="center", upwards=True)
    sheet.text(x + wide / 2, y + high + below - 20, f"key: {names[1]}", 6.5, ha="center")


def _draw_title(sheet: Sheet, x: float, y: float, panel: _Panel) -> None:
    layer, head = panel.layer, panel.head
    letter = layer.letters[head : head + 1]
    title = f"layer {panel.number}, head {head}"
    left = x
    if letter in CLASSES:
        sheet.chip(x, y, CHIP, letter, CLASSES[letter])
        left, title = x + CHIP + 12, f"{title}: {classes.CLASSES[letter][0]}"
    sheet.text(left, y + CHIP / 2, title, 7.5, weight="bold")
    figures = [(layer.statistics.entropy, "entropy {:.2f} nats")]
    if not signed(layer):
        figures += [
            (layer.statistics.sink, "sink {:.0%}"),
            (layer.statistics.previous, "previous {:.0%}"),
            (layer.statistics.induction, "induction {:.0%}"),
        ]
    said = [
        text.format(value) for values, text in figures if (value := float(values[head])) == value
    ]
    if panel.share is not None:
        said.append("first key left out")
    while said and width_of("   ".join(said), 6) > max(TITLE, panel.size[0]) + GAP / 2:
        said.pop()
    sheet.text(x, y + CHIP + 26, "   ".join(said), 6, color=GREY)
