"""Which words of a source each word of a target comes from, as a map with the links marked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bigmodel_cli.attend.alignment import Alignment
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.picture.frame import LEAST_WIDTH, draw_caption, draw_header, finish
from bigmodel_cli.attend.picture.labels import label, label_width
from bigmodel_cli.attend.picture.maps import Scale, draw_bar, draw_map, weight_title
from bigmodel_cli.attend.picture.sheet import INK, MARGIN, SANS, Sheet, array_of
from bigmodel_cli.pictures import plain_names

SIZE, LABEL = 7.0, 24
SIDES = (30, 64)
"""Pixels of a cell, at least and at most."""
WIDE = 1900


def draw_alignment(alignment: Alignment, path: Path, look: Look) -> None:
    """Target words down, source words across; the named links of each word have a frame.

    Of the look its model, title, answer and notes are said.
    """
    weights = array_of(alignment.weights)
    rows, columns = weights.shape
    cell = max(SIDES[0], min(SIDES[1], WIDE // max(rows, columns)))
    names = plain_names([label(word.strip(), LABEL) for word in alignment.target])
    heads = plain_names([label(word.strip(), LABEL) for word in alignment.source])
    left = label_width(names, SIZE, SANS) + 70
    sheet, x = Sheet(), MARGIN + left
    width = max(LEAST_WIDTH, left + columns * cell)
    y = draw_header(sheet, look, width, [f"{alignment.layer}, {alignment.when}"])
    y += label_width(heads, SIZE, SANS) + 50
    scale = Scale(columns)
    sheet.text(x + columns * cell / 2, y - label_width(heads, SIZE, SANS) - 40, "source", 6.5,
               ha="center")  # fmt: skip
    sheet.text(MARGIN + 14, y + rows * cell / 2, "target", 6.5, ha="center", upwards=True)
    for column, name in enumerate(heads):
        at = x + (column + 0.5) * cell
        sheet.text(at, y - 10, name, SIZE, ha="left", upwards=True)
    for row, name in enumerate(names):
        sheet.text(x - 12, y + (row + 0.5) * cell, name, SIZE, ha="right")
    draw_map(sheet, x, y, weights, scale, (cell, cell))
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) * (cell - 4) + 2
    links = alignment.links()
    sheet.lines([corners + np.array([x + s * cell, y + t * cell]) for t, s in links], INK, 1.1)
    y = draw_bar(sheet, MARGIN, y + rows * cell + 40, scale, 640, weight_title(scale))
    how = (
        "Each row says where a word of the target comes from; framed: the named links."
        f" {alignment.rule[:1].upper()}{alignment.rule[1:]}."
    )
    if alignment.agreement is not None:
        how += (
            f" {alignment.agreement:.0%} of the probability that hiding source words costs is on"
            " what the weights name."
        )
    finish(sheet, path, width, draw_caption(sheet, y + 10, look, width, how, checked=False))
