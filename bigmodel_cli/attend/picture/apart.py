"""`--diff`: how far the heads of two models are apart, and where their weights differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigmodel_cli.attend.apart import Apart, LayerApart
from bigmodel_cli.attend.colours import RGB, diverging, hexadecimal, ink_on, sequential
from bigmodel_cli.attend.look import Blocks, Look
from bigmodel_cli.attend.picture.frame import LEAST_WIDTH, LESS, draw_caption, draw_header, finish
from bigmodel_cli.attend.picture.grid import FINEST, GAP, HEIGHT, LEAST, MOST, WIDTH, draw_heading
from bigmodel_cli.attend.picture.maps import Array, Scale, cells, draw_bar, draw_map, pooled
from bigmodel_cli.attend.picture.sheet import MARGIN, POINT, Sheet, array_of, width_of
from bigmodel_cli.console import counted
from bigmodel_cli.errors import SpecError
from bigmodel_cli.pictures import plain, plain_names

BADGE = 76


def draw_apart(apart: Apart, path: Path) -> None:
    """All heads as small multiples: the second's weights less the first's, with the divergence of
    each in bits; where there are no maps, the divergences alone.

    Raises `SpecError` for models without heads.
    """
    layers = apart.layers
    if not layers:
        raise SpecError(
            "--diff: these models have no attention, so that there are no heads to draw; leave the"
            " picture out: what is apart is printed"
        )
    sheet, across = Sheet(), max(len(layer.outputs) for layer in layers)
    side = max(LEAST, min(MOST, (WIDTH - GAP * across) / across, HEIGHT / len(layers) - 40))
    maps = [_maps(layer.blocks, side) for layer in layers]
    beside = [width_of(_moved(layer, head), 5.5) + 6 for layer in layers for head in layer.moved]
    wide = max(
        [BADGE + max(beside, default=0), *(m.shape[2] * c for m, c, _ in maps if m is not None)]
    )
    left, pitch = MARGIN + 100, wide + GAP
    width = max(LEAST_WIDTH, left + across * pitch - GAP - MARGIN)
    look = Look(f"{apart.second}{LESS}{apart.first}", [], title=apart.title)
    heads = sum(len(layer.outputs) for layer in layers)
    facts = [counted(len(layers), "layer"), counted(heads, "head"), *plain_names(apart.which)]
    y = draw_header(sheet, look, width, facts)
    places = [left + head * pitch + wide / 2 for head in range(across)]
    y = draw_heading(sheet, y, "difference of the weights of each head", places)
    drawn = [m for m, _, _ in maps if m is not None]
    limit = max((float(np.nanmax(np.abs(m), initial=0)) for m in drawn), default=0.0) or 1.0
    keys = max((layer.blocks.most.shape[2] * layer.blocks.columns for layer in layers
                if layer.blocks is not None), default=1)  # fmt: skip
    scale = Scale(keys, limit, signed=True)
    for number, (layer, (values, cell, _)) in enumerate(zip(layers, maps, strict=True)):
        high = 0 if values is None else values.shape[1] * cell
        sheet.text(left - 18, y + 15 + high / 2, str(number), 6.5, ha="right")
        for head in range(len(layer.outputs)):
            x = left + head * pitch
            _badge(sheet, x, y, layer, head)
            if values is not None:
                draw_map(sheet, x, y + 34, values[head], scale, (cell, cell))
        y += 34 + high + GAP
    y += 20
    if drawn:
        y = draw_bar(sheet, MARGIN, y, scale, 640, _title(layers[0].blocks, maps[0][2]))
    how = (
        "Layers by the numbers on the left, heads by those above; queries go down, keys across. The"
        " number on each head is the Jensen-Shannon divergence of its weights in bits (0: the same,"
        " 1: no key in common)."
    )
    if len(kinds := _kinds(layers)) > 1:
        how += f" Layers are {'; '.join(kinds)}."
    if any(layer.moved for layer in layers):
        how += " An arrow names the head of the second model that does what this one did."
    finish(sheet, path, width, draw_caption(sheet, y + 10, look, width, how, checked=False))


def _kinds(layers: Sequence[LayerApart]) -> list[str]:
    """The layers by their names without numbers: "encoder.mixer 0, 1"."""
    found: dict[str, list[str]] = {}
    for number, layer in enumerate(layers):
        name = ".".join(part for part in layer.name.split(".") if not part.isdecimal())
        found.setdefault(plain(name), []).append(str(number))
    return [f"{name} {', '.join(numbers)}" for name, numbers in found.items()]


def _maps(blocks: Blocks | None, side: float) -> tuple[Array | None, int, int]:
    """The maps (H, R, C) of a layer, the pixels of a cell, and how many blocks one is."""
    if blocks is None:
        return None, 0, 1
    values = array_of(blocks.most)
    by, size = cells(max(values.shape[1:]), side / FINEST)
    return np.stack([pooled(one, by, by) for one in values]), size * FINEST, by


def _title(blocks: Blocks | None, by: int) -> str:
    what = "weight in the second less that in the first; log scale of its size"
    if blocks is not None and (size := (blocks.rows * by, blocks.columns * by)) != (1, 1):
        what += f"; largest of each {size[0]} × {size[1]} block"
    return what


def _badge(sheet: Sheet, x: float, y: float, layer: LayerApart, head: int) -> None:
    """The divergence of a head on its colour, and where the second model has what it did."""
    if layer.bits is None:
        text, colour = f"{float(layer.outputs[head]):.2f}", diverging(0)
    else:
        bits = float(layer.bits[head])
        text, colour = f"{bits:.2f}", sequential(bits)
    sheet.boxes([(x, y, BADGE, 28)], [hexadecimal(colour)])
    sheet.text(x + BADGE / 2, y + 14, text, 24 / POINT, ha="center", color=_ink(colour))
    if head in layer.moved:
        sheet.text(x + BADGE + 6, y + 14, _moved(layer, head), 5.5)


def _moved(layer: LayerApart, head: int) -> str:
    return f"→ {layer.moved[head]}"


def _ink(colour: RGB) -> str:
    return hexadecimal(ink_on(colour))
