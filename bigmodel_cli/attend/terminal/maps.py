"""Small maps of heads, queries down, keys across: in half blocks, or in characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bigmodel_cli.attend import colours
from bigmodel_cli.attend.classes import CLASSES
from bigmodel_cli.attend.look import Layer, Look, Side
from bigmodel_cli.attend.telling import Head, left_out, pooled, without_sink
from bigmodel_cli.attend.terminal.grid import letter_of, letters_of, number_of
from bigmodel_cli.attend.terminal.style import (
    BOLD,
    RGB,
    Line,
    Span,
    Style,
    beside,
    mark,
    ramp,
    shade,
    width_of_line,
)
from bigmodel_cli.attend.terminal.words import fitted, label, named, width_of
from bigmodel_cli.lazy import Tensor, torch

STRETCH = 1.6
LARGEST = 6
"""Rows and columns that a weight is drawn large at most."""
CAPTIONS = 2


def drawn(
    picture: Tensor,
    columns: int,
    lines: int,
    style: Style,
    signed: bool = False,
    stretch: float = 1.0,
) -> list[Line]:
    """A matrix (R, C) of 0 to 1 (signed: -1 to 1) in so much room; NaN is left blank.

    A value is as wide as high where half blocks or two characters make it so; matrices that are too
    large are drawn in blocks, of each the value that is farthest from zero, up to `stretch` times
    as wide as high where there is room for it.
    """
    rows, across = picture.shape
    if columns < 1 or lines < 1 or not rows or not across:
        return []
    tall = lines * style.per_line
    aspect = 3 - style.per_line  # characters are twice as high as wide, half blocks are square
    square = aspect if across * aspect <= columns else 1
    size = min(columns // (across * square), tall // rows, LARGEST)
    if size >= 1:
        picture = picture.repeat_interleave(size, 0).repeat_interleave(size * square, 1)
    else:
        scale = max(rows / tall, across / (columns * stretch / aspect))
        wide = min(columns, across * aspect, round(across / scale * aspect * stretch))
        picture = pooled(picture, min(tall, max(1, round(rows / scale))), max(1, wide))
    return cells_of(picture, style, signed)


def cells_of(picture: Tensor, style: Style, signed: bool = False) -> list[Line]:
    """A matrix of 0 to 1 (signed: -1 to 1), a value in a cell or in half of one; NaN is blank."""
    cells = picture.tolist()
    if style.per_line == 1:
        return [
            [Span(" ") if math.isnan(x) else shade(x, style, signed) for x in row] for row in cells
        ]
    if len(cells) % 2:
        cells.append([math.nan] * len(cells[0]))
    inks = [
        [None if math.isnan(x) else shade(x, style, signed).ground for x in row] for row in cells
    ]
    pairs = zip(inks[::2], inks[1::2], strict=True)
    return [[half(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs]


def half(upper: RGB | None, lower: RGB | None) -> Span:
    """Two colours in one character: the ink above, the ground below; None is the terminal's."""
    if upper is None:
        return Span(" ") if lower is None else Span("▄", lower)
    return Span("▀", upper, lower)


def small_maps(
    look: Look, heads: Sequence[Head], columns: int, lines: int, style: Style
) -> list[Line]:
    """The heads beside one another, each with its number, class and heaviest pair above its map."""
    if not heads or lines <= CAPTIONS:
        return []
    gap = 2
    wide = (columns - gap * (len(heads) - 1)) // len(heads)
    if wide < FEWEST:
        return small_maps(look, heads[:-1], columns, lines, style)
    return beside([_one(look, head, wide, lines, style) for head in heads], gap)


FEWEST = 12


def _one(look: Look, which: Head, wide: int, lines: int, style: Style) -> list[Line]:
    layer = look.layers[which.layer]
    letter = letters_of(layer)[which.head]
    name = CLASSES.get(letter, ("",))[0]
    head = f"{number_of(look, which.layer)}.{which.head} "
    sink = float(layer.statistics.sink[which.head])
    also = f", sink {100 * sink:.0f}%" if left_out(layer, which.head) else ""
    title = [Span(head, stress=BOLD)]
    wider = width_of(f"{head} {letter}  {name}{also}") <= wide  # with blanks around the letter
    if name:
        title.append(letter_of(letter, style, f" {letter} " if wider else letter))
    title.append(Span(label(f" {name}{also}", wide - width_of_line(title), style.unicode)))
    signed = layer.signed
    picture = scaled(without_sink(layer, which.head), signed, len(layer.keys))
    if layer.keys.grid is not None and layer.keys.grid == layer.queries.grid:
        picture = _patches(layer, which.head, signed)
    body = drawn(picture, wide, lines - CAPTIONS, style, signed, STRETCH)
    return [title, [Span(fitted(heaviest(layer, which.head, style), wide, style.unicode))], *body]


def _patches(layer: Layer, head: int, signed: bool) -> Tensor:
    """What the query reads of the patches, as parts of the largest."""
    grid = layer.keys.grid or (1, 1)
    read = in_grid(layer.read[head], layer.keys).reshape(grid)
    parts = read / read.abs().max().clamp_min(1e-30)
    return parts.abs().sqrt() * parts.sign() if signed else parts.sqrt()


def in_grid(values: Tensor, side: Side) -> Tensor:
    """Of values of all positions (S) those of the patches, without what stands before and after."""
    rows, across = side.grid or (1, len(side))
    return values.detach().double().cpu()[side.first : side.first + rows * across]


def scaled(weights: Tensor, signed: bool, keys: int) -> Tensor:
    """Weights on the scale of the colours: `colours.level`; signed ones as roots of parts of the
    largest, with their signs.
    """
    if signed:
        far = weights.abs().nan_to_num().max().clamp_min(1e-30)
        return (weights.abs() / far).sqrt() * weights.sign()
    return weights.clamp(0, 1).mul(keys).log1p() / math.log1p(keys)


def heaviest(layer: Layer, head: int, style: Style) -> str:
    """The largest weight outside a sink, in words: which token reads which."""
    if layer.keys.grid is not None:
        read = in_grid(layer.read[head], layer.keys)
        place, across = int(read.abs().argmax()), layer.keys.grid[1]
        value = _amount(layer, float(read[place]))
        return f"patch {place // across},{place % across} {value}"
    shown = without_sink(layer, head).nan_to_num()
    # a query that sees few keys must read them much
    choice = 1 + torch.arange(len(shown)) if layer.causal else torch.ones(len(shown))
    far = shown.abs() * choice.log1p()[:, None]
    row, column = divmod(int(far.argmax()), shown.shape[1])
    value = _amount(layer, float(shown[row, column]))
    blocks = layer.blocks
    arrow = style.sign("←", "<-")
    if blocks.rows == blocks.columns == 1:
        one = named(layer.queries.labels[row], 9, style.unicode)
        other = named(layer.keys.labels[column], 9, style.unicode)
        return f"{one} {arrow} {other} {value}"
    return f"@{row * blocks.rows} {arrow} @{column * blocks.columns} {value}"


def _amount(layer: Layer, value: float) -> str:
    return f"{value:+.2g}" if layer.signed else f"{100 * value:.0f} %"


def scale_line(look: Look, heads: Sequence[Head], style: Style, swatch: int = 2) -> Line:
    """What the colours of the maps mean, with ticks on the scale."""
    layers = [look.layers[head.layer] for head in heads]
    if any(layer.signed for layer in layers):
        return [Span(" -max "), *ramp(style, 9, signed=True), Span(" max (signed, no shares)")]
    keys = max(len(layer.keys) for layer in layers)
    line: Line = []
    ticks = [("0", 0.0), (".01", 0.01), (".1", 0.1), ("1", 1.0)]
    if keys > 1:
        ticks.append(("1/T", 1 / keys))
    for text, weight in sorted(ticks, key=lambda tick: tick[1]):
        level = colours.level(weight, keys)
        cell = shade(level, style)
        shown = cell.text if style.colours else mark(level, style)
        line += [Span(f" {text}"), Span(shown * swatch, cell.ink, cell.ground)]
    return line
