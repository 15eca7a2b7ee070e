"""Encoded images to tensors, with every conversion stated.

EXIF orientation is applied. An animated image gives its first frame. 16-bit grey is scaled to 8 bits. CMYK, palette and
transparent images become RGB (transparency on black), or grey where one channel is asked for.
"""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.config import Facts
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def decode(source: Path | bytes, name: str, channels: int, size: tuple[int, int] | None) -> Pixels:
    """An encoded image as (C, H, W) uint8, resized to (height, width) where given. Raises `DataError` naming it."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                image: Any = ImageOps.exif_transpose(opened)
                return to_array(image, channels, size)
    except FileNotFoundError:
        raise DataError(f"{name}: no such image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{name}: not a whole image ({error}); repair or remove it, or set data.on_bad: skip") from None


def to_array(image: Any, channels: int, size: tuple[int, int] | None) -> Pixels:
    """A PIL image as (C, H, W) uint8."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values / (257 if values.max(initial=0) > 255 else 1)).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def prepare_image(path: Path, facts: Facts) -> Tensor:
    """An image file as a model with these facts reads it: (1, C, H, W) float32, normalised. Raises `DataError`."""
    assert facts.image_shape is not None
    channels, height, width = facts.image_shape
    pixels = torch.from_numpy(decode(path, str(path), channels, (height, width)).copy())[None]
    return normalise(pixels.float() / 255, facts)


def normalise(images: Tensor, facts: Facts) -> Tensor:
    """(x - mean) / std per channel, for pixels in 0..1."""
    if not facts.mean:
        return images
    minus, scale = _constants(facts.mean, facts.std, images.device)
    return torch.addcmul(minus, images, scale)


def denormalise(images: Tensor, facts: Facts) -> Tensor:
    """The inverse of `normalise`, cut to 0..1: what an image (..., C, H, W) looks like."""
    mean, std = (
        torch.tensor(v or (d,), device=images.device).view(-1, 1, 1) for v, d in ((facts.mean, 0.0), (facts.std, 1.0))
    )
    return (images * std + mean).clamp(0, 1)


@functools.lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(-mean / std, 1 / std), each (1, C, 1, 1): the same map as one multiplication and one addition."""
    scale = 1 / torch.tensor(std, device=device).view(1, -1, 1, 1)
    return -torch.tensor(mean, device=device).view(1, -1, 1, 1) * scale, scale
