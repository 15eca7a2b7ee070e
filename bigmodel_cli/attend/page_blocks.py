"""Blocks of weights on a page: small maps of all heads, and coarse ones of those with no others.

Their sides follow from how many heads there are, so that no page is too large.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from bigmodel_cli.attend.details import deflated
from bigmodel_cli.attend.look import Blocks, Layer
from bigmodel_cli.attend.page_heat import KIND
from bigmodel_cli.lazy import F, Tensor, torch

THUMBNAIL, MOST_THUMBNAILS = 48, 1_500_000
"""Most blocks to a side of the small map of a head, and of all small maps of a page."""
SIDE, MOST_BLOCKS = 256, 1_200_000
"""The same of the coarse maps; there are two of each head."""
MOST_ROWS = 2_400_000
"""Most weights of single rows (what the query reads) in all."""


class Arrays(Protocol):
    """Where arrays are put."""

    def add(self, packed: bytes) -> int:
        """The number of an array."""
        ...


def thumbnails(layer: Layer, heads: int, peak: float, arrays: Arrays) -> dict[str, Any]:
    """Small maps of a layer on a page of so many heads."""
    most = layer.blocks.most
    if layer.kind == KIND and layer.keys.grid is not None:
        most = most.unflatten(-1, layer.keys.grid)[:, 0]
    side = max(1, min(THUMBNAIL, math.isqrt(MOST_THUMBNAILS // max(1, heads))))
    small, tall, wide = coarser(most, side)
    return {
        "rows": small.shape[1],
        "columns": small.shape[2],
        "tall": tall * layer.blocks.rows,
        "wide": wide * layer.blocks.columns,
        "codes": arrays.add(deflated(codes(small, layer.signed, peak))),
    }


def coarse(blocks: Blocks, heads: int, signed: bool, peak: float, arrays: Arrays) -> dict[str, Any]:
    """The largest and the mean of blocks, on a page with such maps of so many heads."""
    limit = max(1, min(SIDE, math.isqrt(MOST_BLOCKS // max(1, heads))))
    most, tall, wide = coarser(blocks.most, limit)
    mean, *_ = coarser(blocks.mean, limit, mean=True)
    return {
        "rows": most.shape[1],
        "columns": most.shape[2],
        "tall": tall * blocks.rows,
        "wide": wide * blocks.columns,
        "most": arrays.add(deflated(codes(most, signed, peak))),
        "mean": arrays.add(deflated(codes(mean, signed, peak))),
    }


def coarser(values: Tensor, most: int, mean: bool = False) -> tuple[Tensor, int, int]:
    """(H, R, C) with at most `most` rows and columns, and how many became one of each.

    A block takes the largest of its own by size, or the mean of them; NaN where all are NaN.
    """
    rows, columns = (-(-size // most) for size in values.shape[1:])
    values = values.float()
    if rows == columns == 1:
        return values, 1, 1
    pads = (0, -values.shape[2] % columns, 0, -values.shape[1] % rows)
    whole = F.pad(values, pads, value=math.nan)
    parts = whole.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3).flatten(3)
    if mean:
        return parts.nanmean(-1), rows, columns
    place = parts.abs().nan_to_num(-1).argmax(-1, keepdim=True)
    return parts.gather(-1, place).squeeze(-1), rows, columns


def codes(values: Tensor, signed: bool, peak: float) -> Tensor:
    """Bytes: the root in steps of 1/254 (around 127 where signed), 255 where nothing is seen."""
    part = values.nan_to_num(0) / peak
    if signed:
        found = (part.abs().clamp(max=1).sqrt() * part.sign() * 127 + 127).round()
    else:
        found = (part.clamp(0, 1).sqrt() * 254).round()
    return found.masked_fill(values.isnan(), 255).to(torch.uint8)
