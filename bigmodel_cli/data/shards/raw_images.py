"""Images that are stored as their pixels: width, height and length of the mode's name (uint32), the
mode's name, and the pixels, as MDS and litdata write images of Pillow.
"""

from __future__ import annotations

import io

import numpy as np

from bigmodel_cli.data.shards.records import Fields, text_of
from bigmodel_cli.errors import DataError

MODES = {"1", "L", "LA", "RGB", "RGBA", "I;16"}
"""Modes whose pixels are whole by themselves, and which PNG can hold."""
MOST_PIXELS = 1 << 28


def as_png(data: bytes, where: str) -> bytes:
    """The image as a PNG file, without loss. Raises `DataError`."""
    from PIL import Image

    fields = Fields(data, where)
    width, height, length = (int(n) for n in np.frombuffer(fields.take(12), "<u4"))
    mode = text_of(fields.take(min(length, 16)), where)
    if mode not in MODES:
        raise DataError(
            f"{where}: pixels of mode {mode!r}, and of raw images {', '.join(sorted(MODES))} are"
            " read; write it as png or jpeg"
        )
    if not 0 < width * height <= MOST_PIXELS:
        raise DataError(f"{where}: an image of {width:,} x {height:,} pixels; write it anew")
    try:
        image = Image.frombytes(mode, (width, height), fields.rest())
    except ValueError as error:
        raise DataError(f"{where}: not an image of {width} x {height} ({error})") from None
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    return file.getvalue()
