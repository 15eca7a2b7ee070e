"""A text shaded by what one query reads of it, or the patches of an image."""

from __future__ import annotations

import math

from bigmodel_cli.attend.telling import Reading
from bigmodel_cli.attend.terminal.maps import drawn, in_grid
from bigmodel_cli.attend.terminal.style import (
    BOLD,
    MARKED,
    Line,
    Span,
    Style,
    mark,
    ramp,
    shade,
    width_of_line,
)
from bigmodel_cli.attend.terminal.words import joint, label, width_of
from bigmodel_cli.lazy import torch

AROUND = 3
"""Tokens that are shown before and after one that is read much."""
FAINT = 0.02
"""Parts of the largest weight that are not shaded."""
FEWEST = 6
"""Fewest columns that a long token is cut to."""


def _percent(share: float) -> str:
    """Two figures, and never an exponent: 100, 12, 1.2, 0.012."""
    return f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.2g}"


def heading(
    reading: Reading,
    name: str,
    columns: int,
    style: Style,
    several: bool = False,
    short: bool = False,
) -> list[Line]:
    """Who reads what, what is left out, and the scale: one line, or two where it is long and not
    to be `short`.
    """
    peak = float(reading.weights.abs().max()) if len(reading.weights) else 0.0
    whose = f" of the {reading.keys.name}" if several else ""
    words = f"who reads {name}{whose}" if reading.read else f"{name} reads{whose}"
    sink = ""
    if reading.left_out:
        first = label(reading.keys.labels[0], 12, style.unicode).strip()
        sink = f"; {100 * reading.first:.0f} % on '{first}', not shaded"
    scale: Line = [Span(" 0 "), *ramp(style, 8), Span(f" {_percent(peak)} %")]
    if reading.signed:
        scale = [Span(" -1 "), *ramp(style, 9, signed=True), Span(" 1 of the largest, signed")]
    how = f" ({reading.what}{sink})"
    room = columns - width_of_line(scale)
    for said in (how, f" ({reading.what.split(', by')[0]}{sink})"):
        if width_of(words) + width_of(said) <= room:
            return [[Span(words, stress=BOLD), Span(said), *scale]]
    if short:
        cut = label(how, max(0, room - width_of(words)), style.unicode)
        return [[Span(label(words, room, style.unicode), stress=BOLD), Span(cut), *scale]]
    head = [Span(label(words, columns, style.unicode), stress=BOLD)]
    return [head, [Span(label(how.strip(), room, style.unicode)), *scale]]


def shaded(reading: Reading, columns: int, lines: int, style: Style) -> list[Line]:
    """The tokens as running text, each on the shade of its weight, in at most so many lines.

    Of a text that is too long the tokens that are read most are shown with those around them and
    around the query. Without colours a line of shades is below each line of text.
    """
    each = 1 if style.colours else 2
    rows = lines // each
    if rows < 1 or columns < FEWEST:
        return []
    where = _chosen(reading, columns * rows, style)
    while True:
        made = _rows(reading, where, columns, style)
        if len(made) <= rows or len(where) <= 1:
            break
        where = _less(reading, where)
    return [line for row in made[:rows] for line in _drawn(row, style)]


def _order(reading: Reading) -> list[int]:
    """Positions, the query's first, then by weight."""
    count = min(len(reading.weights), 4096)
    order = reading.weights.abs().topk(count).indices.tolist()
    return [reading.query, *order] if _own(reading) else order


def _own(reading: Reading) -> bool:
    """Whether the query is one of the keys."""
    return reading.kind != "cross" and reading.query < len(reading.keys)


def _chosen(reading: Reading, room: int, style: Style) -> list[int]:
    """Positions whose texts take about that many columns."""
    labels, total = reading.keys.labels, len(reading.keys)
    gap = len(joint(labels))
    found: set[int] = set()
    used = 0
    for center in _order(reading):
        for place in range(max(0, center - AROUND), min(total, center + AROUND + 1)):
            if place not in found:
                used += width_of(label(labels[place], room, style.unicode)) + gap
                found.add(place)
        if used > room or len(found) == total:
            break
    return sorted(found)


def _less(reading: Reading, where: list[int]) -> list[int]:
    """The same positions without the one that is read least, and its neighbours that are as far
    from what is read.
    """
    weights = reading.weights.abs()
    near = torch.nn.functional.max_pool1d(weights[None, None], 2 * AROUND + 1, 1, AROUND)[0, 0]
    keep = sorted(where, key=lambda p: (p == reading.query and _own(reading), float(near[p])))
    return sorted(keep[max(1, len(keep) // 12) :])


Cell = tuple[str, float, bool]
"""Text of a token, its weight as a part of the largest (signed), whether it is the query."""


def _rows(reading: Reading, where: list[int], columns: int, style: Style) -> list[list[Cell]]:
    labels = reading.keys.labels
    between = joint(labels)
    peak = float(reading.weights.abs().max()) or 1.0
    most = max(FEWEST, columns // 3)
    rows: list[list[Cell]] = [[]]
    used, previous = 0, -1
    for place in where:
        own = _own(reading) and place == reading.query
        cells: list[Cell] = []
        if place != previous + 1:
            cells.append((f" {style.sign('…', '...')}@{place} ", 0.0, False))
        elif rows[-1] and between:
            cells.append((between, 0.0, False))
        text = label(labels[place], min(most, columns), style.unicode)
        cells.append((text, float(reading.weights[place]) / peak, own))
        previous = place
        for cell in cells:
            size = width_of(cell[0])
            if used + size > columns and used:
                rows.append([])
                used = 0
            rows[-1].append(cell)
            used += size
    if where and where[-1] + 1 < len(labels):
        end = f" {style.sign('…', '...')}"
        if used + width_of(end) <= columns:
            rows[-1].append((end, 0.0, False))
    return rows


def _drawn(row: list[Cell], style: Style) -> list[Line]:
    if style.colours:
        return [[_token(cell, style, signed=any(x < 0 for _, x, _ in row)) for cell in row]]
    signed = any(x < 0 for _, x, _ in row)
    below = "".join(
        ("^" if own else mark(_lifted(x), style, signed)) * width_of(text) for text, x, own in row
    )
    return [[Span(text) for text, _, _ in row], [Span(below)]]


def _token(cell: Cell, style: Style, signed: bool) -> Span:
    text, x, own = cell
    if not _lifted(x):
        return Span(text, stress=MARKED if own else "")
    span = shade(_lifted(x), style, signed, text)
    return Span(text, span.ink, span.ground, stress=MARKED if own else "")


def _lifted(x: float) -> float:
    """The root, by which small weights are seen, with the sign; 0 of what is faint."""
    if abs(x) < FAINT:
        return 0.0
    return math.copysign(math.sqrt(abs(x)), x)


def patches(reading: Reading, columns: int, lines: int, style: Style) -> list[Line]:
    """The grid of patches of an image; what comes before them (class token, registers) apart."""
    grid = reading.keys.grid
    if grid is None:
        return []
    picture = in_grid(reading.weights, reading.keys).reshape(grid)
    peak = float(reading.weights.abs().max()) or 1.0
    return drawn(
        (picture.abs() / peak).sqrt() * picture.sign(), columns, lines, style, reading.signed
    )


def apart(reading: Reading, columns: int, style: Style) -> Line:
    """The special positions before and after the patches, each with its share."""
    peak = float(reading.weights.abs().max()) or 1.0
    line: Line = []
    rows, across = reading.keys.grid or (1, len(reading.keys))
    stop = reading.keys.first + rows * across
    for place in (*range(reading.keys.first), *range(stop, len(reading.keys))):
        weight = float(reading.weights[place])
        text = f" {label(reading.keys.labels[place], 12, style.unicode)} {100 * weight:.0f} % "
        if reading.left_out and not place:
            text = f"{text.rstrip().rsplit(' ', 2)[0]} {100 * reading.first:.0f} %, not shaded "
        if sum(width_of(s.text) for s in line) + width_of(text) + 1 > columns:
            break
        line += [_token((text, weight / peak, False), style, reading.signed), Span(" ")]
    return line
