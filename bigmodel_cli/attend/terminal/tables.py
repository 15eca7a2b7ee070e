"""Tables of colours for a terminal: the logit lens, and the loads of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bigmodel_cli.attend.terminal.style import (
    BOLD,
    Line,
    Span,
    Style,
    mark,
    ramp,
    rendered,
    shade,
    width_of_line,
)
from bigmodel_cli.attend.terminal.words import fitted, label, width_of, wrapped

LEAST_CELL, MOST_CELL = 7, 14
"""Columns of a token in the lens."""
MOST_SHARE = 2.0
"""The load of an expert, in parts of an even one, that has the full shade."""


def lens(
    layers: Sequence[str],
    positions: Sequence[str],
    tokens: Sequence[Sequence[str]],
    probabilities: Sequence[Sequence[float]],
    size: tuple[int, int],
    style: Style,
) -> str:
    """What each layer would answer at each position: the likeliest token on the shade of its
    probability, layers down, positions across.

    `tokens` and `probabilities` are layers x positions. In `size` (columns, lines), the last line
    of which is the prompt's, the last positions are shown, and layers that are evenly apart.
    """
    columns, lines = size[0], max(1, size[1] - 1)
    rows = _evenly(len(layers), max(1, lines - 4))
    names = min(14, max((width_of(label(layers[k], 14, style.unicode)) for k in rows), default=1))
    room = columns - names - 1
    cell = min(MOST_CELL, max(LEAST_CELL, room // max(1, len(positions)) - 1))
    count = max(0, min(len(positions), room // (cell + 1)))
    first = len(positions) - count
    head: Line = [Span(" " * (names + 1))]
    for text in positions[first:]:
        head.append(Span(fitted(text.strip() or text, cell, style.unicode) + " ", stress=BOLD))
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
    return rendered(found[:lines], columns, style)


def _guess(token: str, p: float, cell: int, style: Style) -> list[Span]:
    if style.colours:
        shown = shade(p, style, text=fitted(token.strip() or token, cell, style.unicode))
        return [shown, Span(" ")]
    text = fitted(token.strip() or token, cell - 1, style.unicode)
    return [Span(text + mark(p, style) + " ")]


def _evenly(count: int, most: int) -> list[int]:
    """Places of at most so many of `count`, the last among them."""
    if count <= most:
        return list(range(count))
    return [round((k + 1) * count / most) - 1 for k in range(most)]


def routing(
    layers: Sequence[str], loads: Sequence[Sequence[float]], size: tuple[int, int], style: Style
) -> str:
    """How much of the tokens each expert gets, layers down, experts across.

    `loads` (layers x experts) are shares or counts. The shade is the part of an even load; beside
    it are the least and the largest part, and how many experts the load amounts to (exponential of
    its entropy).
    """
    columns, lines = size[0], max(1, size[1] - 1)
    names = min(20, max((width_of(label(name, 20, style.unicode)) for name in layers), default=1))
    figures = [_figures(load) for load in loads]
    beside = max((len(text) for text in figures), default=0)
    room = columns - names - beside - 3
    most = max((len(load) for load in loads), default=1)
    together = max(1, math.ceil(most / max(1, room)))
    cell = 2 if 2 * most <= room else 1
    body: list[Line] = []
    for name, load, text in list(zip(layers, loads, figures, strict=True))[: max(1, lines - 2)]:
        parts = _parts(load, together)
        spans = [_load(part, cell, style) for part in parts]
        blanks = " " * (cell * (math.ceil(most / together) - len(parts)) + 1)
        body.append([Span(fitted(name, names, style.unicode) + " "), *spans, Span(blanks + text)])
    several = f", the largest of {together}" if together > 1 else ""
    more = len(loads) - len(body)
    rest = f"; and {more} more layers" if more > 0 else ""
    title: Line = [Span(f"experts' load{several}: 0 ", stress=BOLD), *ramp(style, 8)]
    title.append(Span(f" {MOST_SHARE:g} x even{rest}"))
    last = wrapped("used: experts that the load amounts to, exp(entropy)", columns)[:1]
    return rendered([title, *body, [Span(text) for text in last]][:lines], columns, style)


def _figures(load: Sequence[float]) -> str:
    total = sum(load)
    if not load or total <= 0:
        return "no tokens"
    even = [x * len(load) / total for x in load]
    entropy = -sum(x / total * math.log(x / total) for x in load if x > 0)
    used = math.exp(entropy)
    return f"{min(even):.2f} to {max(even):.2f} x even, {used:.1f} of {len(load)} used"


def _parts(load: Sequence[float], together: int) -> list[float]:
    """Parts of an even load, the largest of so many neighbours."""
    even = sum(load) / len(load) if load else 0.0
    parts = [x / even if even > 0 else 0.0 for x in load]
    return [max(parts[k : k + together]) for k in range(0, len(parts), together)]


def _load(part: float, cell: int, style: Style) -> Span:
    return shade(part / MOST_SHARE, style, text=" " * cell)
