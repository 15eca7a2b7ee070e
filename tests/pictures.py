"""Image files written by hand, byte for byte, so that no library decides what they mean."""

from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
"""PNG's types of colour."""


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, bits: int = 8, kind: int = GREY, extra: bytes = b"") -> bytes:
    """A PNG of (H, W) or (H, W, C) values; `extra` are chunks before the pixels."""
    height, width = pixels.shape[:2]
    rows = []
    for row in pixels.reshape(height, -1):
        if bits >= 8:
            rows.append(b"\0" + row.astype(f">u{bits // 8}").tobytes())
        else:
            text = "".join(format(int(v), f"0{bits}b") for v in row)
            text += "0" * (-len(text) % 8)
            rows.append(b"\0" + int(text, 2).to_bytes(len(text) // 8, "big"))
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = (
        chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    pixels: np.ndarray, photometric: int = 1, order: str = "<", tags: dict[int, int] | None = None
) -> bytes:
    """An uncompressed TIFF of (H, W) or (H, W, C) values, of the array's own type."""
    height, width = pixels.shape[:2]
    channels = pixels[0, 0].size
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    bits = pixels.dtype.itemsize * 8
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    entries: dict[int, tuple[int, int, int]] = {  # tag: (type, count, value)
        256: (4, 1, width), 257: (4, 1, height), 259: (3, 1, 1), 262: (3, 1, photometric),
        277: (3, 1, channels), 278: (4, 1, height), 279: (4, 1, len(data)), 284: (3, 1, 1),
    }  # fmt: skip
    entries |= {tag: (3, 1, value) for tag, value in (tags or {}).items()}
    count = len(entries) + 3
    far = 8 + 2 + 12 * count + 4  # where what does not fit into an entry is kept
    short = f"{order}{channels}H"
    lists = {
        258: struct.pack(short, *[bits] * channels),
        339: struct.pack(short, *[kind] * channels),
    }
    kept, places = b"", {}
    for tag, content in lists.items():
        places[tag] = (
            content.ljust(4, b"\0")
            if len(content) <= 4
            else struct.pack(f"{order}I", far + len(kept))
        )
        kept += content if len(content) > 4 else b""
    entries[273] = (4, 1, far + len(kept))
    directory = b""
    for tag in sorted([*entries, *lists]):
        if tag in lists:
            directory += struct.pack(f"{order}HHI", tag, 3, channels) + places[tag]
        else:
            form, number, value = entries[tag]
            packed = struct.pack(f"{order}{'H2x' if form == 3 else 'I'}", value)
            directory += struct.pack(f"{order}HHI", tag, form, number) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", count) + directory + bytes(4) + kept + data
