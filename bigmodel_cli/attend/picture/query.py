"""What one position reads: the text shaded by the mean of the heads, and each head's row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bigmodel_cli.attend.colours import CLASSES, hexadecimal, ink_on, sequential
from bigmodel_cli.attend.look import Layer, Look
from bigmodel_cli.attend.picture.frame import (
    LEAST_WIDTH,
    PictureOptions,
    draw_caption,
    draw_header,
    facts_of,
    finish,
)
from bigmodel_cli.attend.picture.labels import LABEL, SIZE, label, label_width, named
from bigmodel_cli.attend.picture.maps import (
    Array,
    Scale,
    cells,
    draw_bar,
    draw_map,
    kind_of,
    number_of,
    pooled,
    signed,
    weight_title,
)
from bigmodel_cli.attend.picture.sheet import (
    GREY,
    MARGIN,
    MONO,
    POINT,
    Sheet,
    array_of,
    cut_to,
    width_of,
)
from bigmodel_cli.attend.telling import Reading, readers_of, reading_of, turned
from bigmodel_cli.pictures import plain_names

ROOM = 1900
"""Pixels of a row of keys, where they are many."""
ROWS = (10, 26)
"""Pixels of a head's row, at least and at most."""
HIGH = 1500
MOST_TEXT = 400
"""Tokens of which a text is shown."""
TEXT = 7.0


def draw_query(look: Look, path: Path, options: PictureOptions) -> None:
    """What the query reads, for each side that is looked at from one side, and who reads the key;
    the one of the two that was asked for.
    """
    groups: dict[tuple[str, int, str], list[int]] = {}
    asked = any(layer.chosen for layer in look.layers)
    for place, layer in enumerate(look.layers):
        if asked and not layer.chosen:
            continue
        groups.setdefault((kind_of(layer), layer.query, str(signed(layer))), []).append(place)
    parts = [(own, False) for own in groups.values() if options.query or not options.key]
    parts += [(own, True) for own in groups.values() if options.key]
    shown = [(own, [_shown(look.layers[n], key) for n in own], key) for own, key in parts]
    sheet = Sheet()
    width = max(LEAST_WIDTH, *(_wide(layers[0], key) for _, layers, key in shown))
    y = draw_header(sheet, look, width, facts_of(look, look.layers))
    for own, layers, key in shown:
        y = _draw_group(sheet, y, own, layers, width, key) + 50
    how = (
        "Each row of a map is a head, each column a position that is read, or that reads; the text"
        " is shaded in parts of its largest weight."
    )
    finish(sheet, path, width, draw_caption(sheet, y - 20, look, width, how))


def _wide(layer: Layer, key: bool) -> float:
    seen = _seen(layer, key)
    count: int = seen.stop - seen.start
    by, size = cells(count, ROOM)
    return min(size, 60) * math.ceil(count / by) + 160


def _shown(layer: Layer, key: bool) -> Layer:
    return turned(layer) if key else layer


def _draw_group(
    sheet: Sheet, y: float, own: Sequence[int], layers: Sequence[Layer], width: float, key: bool
) -> float:
    """The text of one side, then the rows of all heads; returns the lowest edge."""
    first = layers[0]
    (token,) = plain_names([label(first.queries.labels[first.query], 2 * LABEL)])
    named, kind = f"position {first.query:,} ({token})", first
    if key:
        kind = replace(first, queries=first.keys, keys=first.queries)
    what = f"Who reads {named}" if key else f"What {named} reads"
    titled = cut_to(f"{what} — {kind_of(kind)}", width, 7.5, bold=True)
    sheet.text(MARGIN, y + 14, titled, 7.5, weight="bold")
    y = _draw_text(sheet, y + 66, layers, width, key) + 40
    return _draw_rows(sheet, y, own, layers, key)


def _draw_text(sheet: Sheet, y: float, layers: Sequence[Layer], width: float, key: bool) -> float:
    """The positions as a text, each on the colour of what is read of it, or what it reads."""
    reading = readers_of(layers) if key else reading_of(layers)
    side, weights = reading.keys, np.abs(array_of(reading.weights))
    seen = _seen(layers[0], key)
    last = seen.stop
    begin = max(seen.start, last - MOST_TEXT)
    whole = plain_names([label(side.labels[place], 40) for place in range(begin, last)])
    names = [cut_to(name, width - 8, TEXT, MONO) for name in whole]
    peak = max(float(weights[begin:last].max(initial=0)), 1e-30)
    high, x = 1.7 * TEXT * POINT, float(MARGIN)
    sheet.text(x, y - 14, _said(reading, begin > seen.start, last), 6, color=GREY)
    y += 8
    boxes, colours = [], []
    for name, weight in zip(names, weights[begin:last], strict=True):
        wide = width_of(name, TEXT, MONO) + 8
        if x + wide > MARGIN + width:
            x, y = float(MARGIN), y + high + 4
        colour = sequential(0.75 * float(weight) / peak)
        boxes.append((x, y, wide, high))
        colours.append(hexadecimal(colour))
        ink = hexadecimal(ink_on(colour))
        sheet.text(x + 4, y + high / 2, name, TEXT, family=MONO, color=ink)
        x += wide + 3
    sheet.boxes(boxes, colours)
    return y + high


def _said(reading: Reading, cut: bool, last: int) -> str:
    """What the text's shades are."""
    parts = [reading.what]
    if reading.left_out:
        parts.append(f"the first key, {reading.first:.0%} of it, is left out")
    if cut:
        parts.append(f"the last {MOST_TEXT} of {last:,} tokens")
    return "; ".join(parts)


def _draw_rows(
    sheet: Sheet, y: float, own: Sequence[int], layers: Sequence[Layer], key: bool
) -> float:
    """A map of heads by the positions that are seen, with its scale."""
    seen = _seen(layers[0], key)
    values = np.concatenate([_rows(layer, seen) for layer in layers])
    kind = signed(layers[0])
    limit = float(np.nanmax(np.abs(values), initial=0.0)) if kind else 1.0
    scale = Scale(len(layers[0].keys), limit or 1.0, kind)
    by, cell = cells(values.shape[1], ROOM)
    cell = min(cell, 60)
    values = pooled(values, 1, by)
    down = min(ROWS[1], max(ROWS[0], HIGH // len(values)))
    x, row = float(MARGIN + 140), 0
    for place, layer in zip(own, layers, strict=True):
        heads = _heads(layer)
        part = values[row : row + len(heads)]
        top = y + row * down + 6 * own.index(place)
        draw_map(sheet, x, top, part, scale, (cell, down))
        number = number_of(layer, place)
        names = [f"{number}.{head}" for head in layer.chosen] or [f"layer {number}"]
        for line, name in enumerate(names):
            middle = top + (line + 0.5) * down * len(heads) / len(names)
            sheet.text(x - down - 14, middle, name, 6, ha="right")
        if down >= 16:
            for line, letter in enumerate(layer.letters[head : head + 1] for head in heads):
                if letter:
                    at = top + line * down + 1
                    sheet.chip(x - down - 4, at, down - 2, letter, CLASSES[letter])
        row += len(heads)
    y += row * down + 6 * len(own)
    below = named(layers[0].keys, by, values.shape[1], cell, seen.start)
    for middle, name in below:
        at = x + middle * cell
        sheet.text(at, y + 10, name, SIZE, ha="right", family=MONO, upwards=True)
    y += label_width([name for _, name in below], SIZE, MONO) + 40
    what = weight_title(scale) + (f"; largest of each {by} keys" if by > 1 else "")
    return draw_bar(sheet, MARGIN, y, scale, 640, what)


def _rows(layer: Layer, seen: slice) -> Array:
    """(heads, C)   what the query reads of the positions seen, or who of them reads the key."""
    return array_of(layer.read)[list(_heads(layer)), seen]


def _heads(layer: Layer) -> Sequence[int]:
    """Those that are drawn."""
    return layer.chosen or range(layer.heads)


def _seen(layer: Layer, key: bool) -> slice:
    """The positions that the query sees, or that see the key."""
    if not layer.causal or layer.kind == "cross":
        return slice(0, len(layer.keys))
    return slice(layer.query, len(layer.keys)) if key else slice(0, layer.query + 1)
