"""Encoded images to tensors, with every conversion stated.

EXIF orientation is applied. An animated image gives its first frame, a TIFF with several pages its
first. The white value follows from the file's type, never from its brightest pixel: 65,535 in grey
of 16 bits, 1 in floating-point pixels, or `data.white_level` (4,095 for 12 bits kept in 16); values
outside black and white are refused. Colour of 16 bits keeps the upper eight. TIFF's MaxSampleValue
is ignored: it may be the brightest pixel's, and its specification forbids this use. Integers of 32
bits, and signed ones, have no white of their own. CMYK, palette and transparent images become RGB
(transparency on black), or grey where one channel is asked for: 0.299 R + 0.587 G + 0.114 B.
Resizing is bilinear and antialiased.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.files import SKIP
from bigmodel_cli.data.image.files import Header, open_image, read_header
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
WHITE = {"16": 65_535.0, "float": 1.0}
TOLERANCE = 1e-3
"""How far beyond black and white floating-point pixels may be by rounding, as a fraction of white.
"""


def decode(
    source: Path | bytes,
    name: str,
    channels: int,
    size: tuple[int, int] | None,
    white: float | None = None,
) -> Pixels:
    """An encoded image as (C, H, W) uint8, resized to (height, width) where given.

    Raises `DataError` naming it.

    `white` is the value of white in pixels of more than 8 bits; the file's type decides where it is
    None.
    """
    from PIL import ImageOps

    with open_image(source, name) as opened:
        header = read_header(opened, name)
        image: Any = ImageOps.exif_transpose(opened)
        if header.depth != "8":
            image = _eight_bits(image, header, name, white)
        elif white is not None and header.name.startswith("16-bit"):
            raise DataError(
                f"{name}: of 16-bit colour only the upper eight bits are read, and data.white_level"
                f" is {white:g}; convert it to 8 bits{SKIP}"
            )
        return to_array(image, channels, size)


def to_array(image: Any, channels: int, size: tuple[int, int] | None) -> Pixels:
    """A PIL image of 8 bits as (C, H, W) uint8."""
    from PIL import Image

    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(
            Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA")
        )
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _eight_bits(image: Any, header: Header, name: str, white: float | None) -> Any:
    """A grey image of more than 8 bits as one of 8, black at 0 and white at 255."""
    from PIL import Image

    white = white or WHITE.get(header.depth)
    if white is None:
        raise DataError(
            f"{name}: {header.name}, which does not say what value is white; set data.white_level,"
            f" convert it to 8 or 16 bits{SKIP}"
        )
    values = np.asarray(image, np.float64)
    low, high, slack = (
        values.min(),
        values.max(),
        TOLERANCE * white if header.depth == "float" else 0.0,
    )
    if not -slack <= low <= high <= white + slack:
        raise DataError(
            f"{name}: {header.name} with pixels from {low:g} to {high:g}, and white is {white:g};"
            f" set data.white_level to the value of white, scale the pixels{SKIP}"
        )
    shade = values / white if not header.inverted else 1 - values / white
    if isinstance(image.info.get("transparency"), int):
        shade[values == image.info["transparency"]] = 0  # transparency on black
    return Image.fromarray(np.rint(shade.clip(0, 1) * 255).astype(np.uint8))


def prepare_image(path: Path, info: DatasetInfo) -> Tensor:
    """An image file as a model with this DatasetInfo reads it: (1, C, H, W) float32, normalised.

    Raises `DataError`.
    """
    assert info.image_shape is not None
    channels, height, width = info.image_shape
    pixels = torch.from_numpy(
        decode(path, str(path), channels, (height, width), info.white_level).copy()
    )[None]
    return normalise(pixels.float() / 255, info)


def normalise(images: Tensor, info: DatasetInfo) -> Tensor:
    """(x - mean) / std per channel, for pixels in 0..1."""
    if not info.mean:
        return images
    minus, scale = _constants(info.mean, info.std, images.device)
    return torch.addcmul(minus, images, scale)


def denormalise(images: Tensor, info: DatasetInfo) -> Tensor:
    """The inverse of `normalise`, clamped to 0..1, of images (..., C, H, W)."""
    mean, std = (
        torch.tensor(v or (d,), device=images.device).view(-1, 1, 1)
        for v, d in ((info.mean, 0.0), (info.std, 1.0))
    )
    return (images * std + mean).clamp(0, 1)


@functools.lru_cache(maxsize=16)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(-mean / std, 1 / std), each (1, C, 1, 1): the same map as one multiplication and one
    addition.
    """
    scale = 1 / torch.tensor(std, device=device).view(1, -1, 1, 1)
    return -torch.tensor(mean, device=device).view(1, -1, 1, 1) * scale, scale
