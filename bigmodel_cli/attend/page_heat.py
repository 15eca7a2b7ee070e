"""An image on a page: its pixels as a PNG, and the map of where its class comes from as a layer."""

from __future__ import annotations

import io
import math

from bigmodel_cli.attend.heat import Heat
from bigmodel_cli.attend.look import Blocks, Layer, Side, Statistics
from bigmodel_cli.lazy import F, Tensor, torch

MOST = 64
"""Most places to a side of the map."""
KIND = "map of the class"


def png_of(image: Tensor) -> bytes:
    """The pixels (C, H, W), 0 to 1, as a file."""
    from PIL import Image

    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    if len(pixels) not in (1, 3):
        pixels = pixels[:1]
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    written = io.BytesIO()
    Image.fromarray(array).save(written, "png")
    return written.getvalue()


def layer_of_heat(heat: Heat) -> Layer | None:
    """The map as the one head of a layer, whose one query is the class; None without a map."""
    if heat.heat is None:
        return None
    values = heat.heat.detach().float().cpu()
    size = [min(MOST, length) for length in values.shape]
    if heat.axes is not None:
        values = values.flip(0)  # rows of a spectrogram count upwards
    small = F.interpolate(values[None, None], size=size, mode="area")[0, 0].clamp(0, 1)
    rows, columns = size
    labels = [f"{row},{column}" for row in range(rows) for column in range(columns)]
    weights = small.flatten()[None, None]  # (1, 1, rows * columns)
    nothing = torch.full((1,), math.nan)
    none = Statistics(*(nothing,) * 9)
    return Layer(
        heat.method,
        KIND,
        Side("class", [heat.caption or heat.label or "the answer"]),
        Side("places", labels, None, 0, (rows, columns)),
        False,
        none,
        Blocks(weights, weights, 1, 1),
        0,
        weights[0],
        weights[0],
    )
