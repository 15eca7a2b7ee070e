"""The logit lens as a table: layers down, positions across, the likeliest answer in each cell."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.attend.colours import hexadecimal, ink_on, sequential
from bigmodel_cli.attend.look import Look
from bigmodel_cli.attend.picture.frame import LEAST_WIDTH, draw_caption, draw_header, finish
from bigmodel_cli.attend.picture.labels import label
from bigmodel_cli.attend.picture.maps import Scale
from bigmodel_cli.attend.picture.sheet import GREY, MARGIN, MONO, Sheet
from bigmodel_cli.console import counted
from bigmodel_cli.pictures import plain_names

CELL = (250, 54)
"""Pixels of a cell."""
COLUMNS, SIZE = 12, 6.5
CHOICES = 3
"""Choices of one label that are shown beside one another."""


def draw_lens(look: Look, path: Path) -> None:
    """What each layer would answer at the query and the positions before it; of one label its
    likeliest choices.
    """
    found = look.extra["lens"]
    layers, several = found["layers"], found["of"] == "positions"
    across = len(found["positions"]) if several else min(CHOICES, len(layers[0]["names"][0]))
    sheet, (wide, high), left = Sheet(), CELL, MARGIN + 190
    width = max(LEAST_WIDTH, left + across * wide)
    y = draw_header(sheet, look, width, [f"{counted(len(layers), 'stream')} read"])
    choices = [f"choice {n + 1}" for n in range(across)]
    names = [label(each, COLUMNS) for each in found["tokens"]] if several else choices
    names = plain_names(names)
    for column, name in enumerate(names):
        sheet.text(left + (column + 0.5) * wide, y + 20, name, SIZE, ha="center", family=MONO)
    y += 50
    boxes, colours = [], []
    for row, layer in enumerate(layers):
        top = y + row * high
        sheet.text(left - 18, top + high / 2, layer["name"], SIZE, ha="right", color=GREY)
        for column in range(across):
            place, choice = (column, 0) if several else (0, column)
            share = layer["probabilities"][place][choice]
            (name,) = plain_names([label(layer["names"][place][choice], COLUMNS)])
            colour, x = sequential(share), left + column * wide
            boxes.append((x, top, wide - 4, high - 4))
            colours.append(hexadecimal(colour))
            ink = hexadecimal(ink_on(colour))
            sheet.text(x + 10, top + high / 2 - 2, name, SIZE, family=MONO, color=ink)
            said, right = f"{100 * share:.0f} %", x + wide - 14
            sheet.text(right, top + high / 2 - 2, said, 5.5, ha="right", color=ink)
    sheet.boxes(boxes, colours)
    y += len(layers) * high + 20
    sheet.text(MARGIN, y + 14, "probability of the answer", 6, color=GREY)
    sheet.image(MARGIN, y + 34, Scale(1).table[None], 640, 24)
    for share, side in ((0, "left"), (1, "right")):
        sheet.text(MARGIN + 640 * share, y + 76, f"{100 * share} %", 6, ha=side)
    how = (
        "Each cell is the likeliest answer that the network would give from its stream there: what"
        " follows the last layer is computed on what each layer has made."
    )
    finish(sheet, path, width, draw_caption(sheet, y + 90, look, width, how, checked=False))
