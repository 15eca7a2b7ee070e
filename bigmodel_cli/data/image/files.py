"""Image files before decoding: accepted formats, and size, colour and depth from the header."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigmodel_cli.console import counted
from bigmodel_cli.data.files import SKIP, check_plain
from bigmodel_cli.errors import DataError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI")
"""The formats that are opened, whatever the file's name is.

Pillow knows others, some of which start a program (EPS: Ghostscript).
"""
ENDINGS = (
    *(
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".webp",
        ".avif",
    ),
    *(".jp2", ".j2k", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".qoi"),
)
"""Endings of their files."""
OTHER_ENDINGS = (
    *(
        ".heic",
        ".heif",
        ".svg",
        ".psd",
        ".tga",
        ".ico",
        ".pcx",
        ".sgi",
        ".dds",
        ".eps",
        ".ps",
        ".pdf",
        ".exr",
        ".hdr",
    ),
    *(
        ".dcm",
        ".nii",
        ".fits",
        ".dng",
        ".cr2",
        ".nef",
        ".arw",
        ".raw",
        ".npy",
        ".jxl",
        ".wmf",
        ".emf",
        ".mpo",
        ".xbm",
        ".xpm",
    ),
)
"""Endings of other image files: leaving these out is worth reporting."""
STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
"""First bytes of PNG, JPEG, GIF, BMP and TIFF."""
REMEDY = f"repair or remove it{SKIP}"
ORIENTATION = 0x0112
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF (and EXIF)."""
Depth = Literal["8", "16", "float", "integer"]


@dataclass(frozen=True)
class Header:
    """What an image's header says: (height, width) once it is upright, and how its pixels are to be
    read.

    `name` is the kind of its pixels for people. `depth` is "8" for up to 8 bits, "16" where 65,535
    is white, "float" where 1 is, and "integer" where the file does not say which value is.
    `inverted`: 0 is white, and Pillow leaves it so.
    """

    size: tuple[int, int]
    name: str
    grey: bool
    depth: Depth = "8"
    inverted: bool = False


def left_out(paths: Sequence[Path]) -> str:
    """A sentence about files of other formats."""
    endings = Counter(path.suffix.lower() for path in paths)
    kinds = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(5))
    return (
        f"warning: {counted(len(paths), 'file is', 'files are')} left out, in formats that are not"
        f" read ({kinds}), the first: {paths[0]}; convert to PNG"
    )


def begins_as_image(path: Path) -> bool:
    """Whether a file begins as those of the common formats do, whatever its name is."""
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(STARTS) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


@contextlib.contextmanager
def open_image(source: Path | bytes, name: str) -> Iterator[Any]:
    """A Pillow image whose pixels are not yet decoded.

    A failure here or within raises `DataError` naming it.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path):
        check_plain(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()
            ) as opened:
                yield opened
    except FileNotFoundError:
        raise DataError(f"{name}: no such image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
        ) from None
    except UnidentifiedImageError:
        known = ", ".join(f for f in FORMATS if f != "DIB")
        raise DataError(
            f"{name}: not a whole image of a format that is read ({known}); {REMEDY}"
        ) from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        LookupError,
        ArithmeticError,
        struct.error,
        zlib.error,
    ) as error:
        raise DataError(f"{name}: not a whole image ({error}); {REMEDY}") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(f for f in FORMATS if f in Image.OPEN)


def read_header(image: Any, name: str) -> Header:
    """The header of an image that `open_image` gave.

    Raises `DataError` for pixels that Pillow would read wrongly.
    """
    width, height = image.size
    size = (width, height) if _is_turned(image) else (height, width)
    mode, tags = image.mode, image.tag_v2 if image.format == "TIFF" else {}
    signed = 2 in tags.get(SAMPLE_FORMAT, ())
    inverted = tags.get(PHOTOMETRIC) == 0 and mode not in ("1", "L")
    if mode == "F":
        return Header(size, "floating-point grey", True, "float", inverted)
    if mode == "I" and image.format == "TIFF":
        return Header(
            size,
            f"{'signed ' * signed}{max(tags.get(BITS, (32,)))}-bit integer grey",
            True,
            "integer",
            inverted,
        )
    if mode == "I" or mode.startswith("I;16"):
        return Header(size, "16-bit grey", True, "16", inverted)
    if signed:
        raise DataError(f"{name}: signed integers of 8 bits; convert them to unsigned ones{SKIP}")
    raw = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    deep = max(tags.get(BITS, (8,))) > 8 or (isinstance(raw, str) and ";16" in raw)
    clear = " with transparency" * ("A" in image.getbands() or "transparency" in image.info)
    if mode in ("P", "PA"):
        return Header(size, f"palette{clear}", _is_grey_palette(image.palette))
    grey = mode in ("1", "L", "LA", "La") or (isinstance(raw, str) and raw.startswith("LA"))
    kind = "grey" if grey else mode if mode in ("CMYK", "LAB", "HSV") else "colour"
    return Header(size, f"{'16-bit ' * deep}{'1-bit ' * (mode == '1')}{kind}{clear}", grey)


def _is_turned(image: Any) -> bool:
    """Whether EXIF's orientation swaps height and width; for TIFF Pillow gives the size after
    that.
    """
    if image.format == "TIFF":
        return False
    metadata = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
    if image.format == "PNG" and not any(key in image.info for key in metadata):
        return False  # asking would decode the pixels, after which it may also be
    return image.getexif().get(ORIENTATION) in (5, 6, 7, 8)


def _is_grey_palette(palette: Any) -> bool:
    if palette is None:  # of a GIF, which has no EXIF of its own
        return False
    width = len(palette.rawmode or palette.mode)
    values = bytes(palette.palette)
    colours = [values[i : i + 3] for i in range(0, len(values) - width + 1, width)]
    return all(len(set(colour)) == 1 for colour in colours)
