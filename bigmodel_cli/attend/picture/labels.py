"""The names of positions along an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bigmodel_cli.attend.look import Side
from bigmodel_cli.attend.picture.sheet import width_of
from bigmodel_cli.console import columns_of, cut, one_line
from bigmodel_cli.pictures import plain_names

PITCH = 25
"""Pixels from one token's label to the next, at least."""
LABEL, SIZE = 14, 5.6
"""Columns of a token's label, and its size in points."""


def named(side: Side, block: int, count: int, cell: int, first: int = 0) -> list[tuple[float, str]]:
    """The labels of so many cells of an axis, each of `block` positions from the `first` on, with
    the middle of each cell: all where they fit, else every n-th with its position.
    """
    step = math.ceil(PITCH / cell)
    places = range(0, count, step)
    begins = [first + place * block for place in places]
    names = plain_names([label(side.labels[begin], LABEL) for begin in begins])
    if step > 1 or block > 1:
        names = [f"{begin:,} {name}" for begin, name in zip(begins, names, strict=True)]
    return [(place + 0.5, name) for place, name in zip(places, names, strict=True)]


def label_width(names: Sequence[str], size: float, family: str) -> float:
    """Pixels that the widest of some labels takes."""
    return max((width_of(name, size, family) for name in names), default=0.0)


def label(token: str, most: int) -> str:
    """A token as a label: white space made visible, cut to at most `most` columns."""
    text = one_line(token.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "␣")) or "␣"
    return text if columns_of(text) <= most else cut(text, most - 1) + "…"
