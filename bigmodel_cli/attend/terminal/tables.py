"""The logit lens as a table of colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel_cli.attend.terminal.style import (
    BOLD,
    Line,
    Span,
    Style,
    mark,
    ramp,
    shade,
    width_of_line,
)
from bigmodel_cli.attend.terminal.words import fitted, label, named, width_of

LEAST_CELL, MOST_CELL = 7, 14
"""Columns of a token in the lens."""


def lens(
    layers: Sequence[str],
    positions: Sequence[str],
    tokens: Sequence[Sequence[str]],
    probabilities: Sequence[Sequence[float]],
    columns: int,
    lines: int,
    style: Style,
) -> list[Line]:
    """What each layer would answer at each position: the likeliest token on the shade of its
    probability, layers down, positions across.

    `tokens` and `probabilities` are layers x positions. In so many columns and lines the last
    positions are shown, and layers that are evenly apart.
    """
    if lines < 1:
        return []
    rows = _evenly(len(layers), max(1, lines - 2))
    names = min(14, max((width_of(label(layers[k], 14, style.unicode)) for k in rows), default=1))
    room = columns - names - 1
    cell = min(MOST_CELL, max(LEAST_CELL, room // max(1, len(positions)) - 1))
    count = max(0, min(len(positions), room // (cell + 1)))
    first = len(positions) - count
    head: Line = [Span(" " * (names + 1))]
    for text in positions[first:]:
        head.append(Span(_cell(text, cell, style) + " ", stress=BOLD))
    body = [
        [
            Span(fitted(layers[k], names, style.unicode) + " "),
            *(
                span
                for token, p in zip(tokens[k][first:], probabilities[k][first:], strict=True)
                for span in _guess(token, p, cell, style)
            ),
        ]
        for k in rows
    ]
    cut = f"; last {count} of {len(positions)} positions" if first else ""
    fewer = f"; {len(rows)} of {len(layers)} layers" if len(rows) < len(layers) else ""
    said = f"logit lens: likeliest next token{cut}{fewer}"
    scale: Line = [Span(" 0 "), *ramp(style, 8), Span(" 100 %")]
    title = [
        Span(label(said, max(1, columns - width_of_line(scale)), style.unicode), stress=BOLD),
        *scale,
    ]
    found = [title, head, *body] if count else [title]
    return found[:lines]


def lens_of(found: Mapping[str, Any], columns: int, lines: int, style: Style) -> list[Line]:
    """The same of `attend.lens.lens`, whose positions may be named by its "tokens"."""
    layers = found["layers"]
    positions = found.get("tokens") or [str(place) for place in found["positions"]]
    if found["of"] != "positions":
        positions = ["the label"]
    return lens(
        [layer["name"] for layer in layers],
        positions,
        [[names[0] for names in layer["names"]] for layer in layers],
        [[own[0] for own in layer["probabilities"]] for layer in layers],
        columns,
        lines,
        style,
    )


def _guess(token: str, p: float, cell: int, style: Style) -> list[Span]:
    if style.colours:
        return [shade(p, style, text=_cell(token, cell, style)), Span(" ")]
    return [Span(_cell(token, cell - 1, style) + mark(p, style) + " ")]


def _cell(token: str, columns: int, style: Style) -> str:
    return fitted(named(token, columns, style.unicode), columns, style.unicode)


def _evenly(count: int, most: int) -> list[int]:
    """Places of at most so many of `count`, the last among them."""
    if count <= most:
        return list(range(count))
    return [round((k + 1) * count / most) - 1 for k in range(most)]
