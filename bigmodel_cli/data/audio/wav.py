"""WAV files to samples: RIFF and RF64, from any writer, streamed or not.

The format is that of Microsoft and IBM (1991) with WAVE_FORMAT_EXTENSIBLE, and of EBU Tech 3306 /
ITU-R BS.2088 (RF64, BW64) for more than 4 GB.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from bigmodel_cli.config import MOST_RATE
from bigmodel_cli.data.files import SKIP
from bigmodel_cli.errors import DataError

Channels = np.ndarray[Any, np.dtype[np.float32]]
MOST_VALUES = 1 << 28
"""Most values in a recording, over all channels: a longer one is refused before it is unpacked."""
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
CODECS = {
    2: "Microsoft ADPCM",
    6: "A-law",
    7: "mu-law",
    17: "IMA ADPCM",
    49: "GSM 6.10",
    80: "MPEG",
    85: "MP3",
}
UNKNOWN, UNKNOWN_LONG, STREAMED = 2**32 - 1, 2**64 - 1, 0x7FFFF000
"""Placeholders for an unknown length: a recorder that writes into a pipe cannot fill them in later.
ffmpeg sets all bits, sox writes the last, others 0.
"""
KNOWN = (
    b"fmt ",
    b"data",
    b"LIST",
    b"fact",
    b"bext",
    b"cue ",
    b"PEAK",
    b"JUNK",
    b"id3 ",
    b"ID3 ",
    b"smpl",
    b"iXML",
)
REMEDY = f"repair or remove it{SKIP}"


def read_wav(content: bytes, name: str) -> tuple[Channels, int]:
    """(samples (N, channels), rate): PCM of 8, 16, 24 or 32 bits in -1..1, float of 32 or 64 as it
    is.

    Raises `DataError`.
    """
    if content[:4] == b"RIFX":
        raise DataError(
            f"{name}: a WAV file of big-endian samples (RIFX); convert it to RIFF{SKIP}"
        )
    if content[:4] not in (b"RIFF", b"RF64", b"BW64") or content[8:12] != b"WAVE":
        raise DataError(f"{name}: not a WAV file: it begins with {content[:12]!r}; {REMEDY}")
    whole = struct.unpack_from("<I", content, 4)[0]
    sizes: dict[bytes, int] = {}  # of RF64, whose chunks may be longer than 32 bits tell
    form: bytes | None = None
    place = 12
    while place + 8 <= len(content):
        kind, size = content[place : place + 4], struct.unpack_from("<I", content, place + 4)[0]
        place += 8
        if size == UNKNOWN:
            size = sizes.get(kind, size)
        if kind == b"ds64":
            whole, sizes = _long_sizes(content[place : place + size], name)
        elif kind == b"fmt ":
            form = content[place : place + size]
        elif kind == b"data" and form is not None:
            available = len(content) - place
            if _from_a_pipe(size, content, whole, place):
                size = available
            elif size > available:
                raise DataError(
                    f"{name}: cut off: {available:,} bytes of samples, and its header says"
                    f" {size:,}; {REMEDY}"
                )
            return _unpack(content[place : place + size], form, name)
        place = _next_chunk(content, place, size)
    missing = "format" if form is None else "samples"
    raise DataError(f"{name}: cut off: a WAV file without its chunk of {missing}; {REMEDY}")


def _long_sizes(chunk: bytes, name: str) -> tuple[int, dict[bytes, int]]:
    """The file's size, and sizes by chunk, of RF64's ds64: sizes of the file and of the samples,
    their count, and a table.
    """
    if len(chunk) < 28:
        raise DataError(f"{name}: its ds64 chunk has {len(chunk)} bytes rather than 28; {REMEDY}")
    whole, data, _, count = struct.unpack_from("<QQQI", chunk)
    table = (
        struct.unpack_from("<4sQ", chunk, at)
        for at in range(28, min(len(chunk) - 11, 28 + 12 * count), 12)
    )
    return whole, {**dict(table), b"data": data}


def _from_a_pipe(size: int, content: bytes, whole: int, place: int) -> bool:
    """Whether a length of samples is a placeholder, so that they reach to the end; `whole` is the
    length in the file's header.
    """
    available = len(content) - place
    unknown = whole in (0, UNKNOWN, UNKNOWN_LONG)
    unknown = unknown or (content[:4] == b"RIFF" and whole >= STREAMED and whole + 8 > len(content))
    if size == 0:  # no samples, if other chunks follow as the header says
        follows = whole + 8 > place and _is_name(content[place : place + 4])
        return available > 0 and (unknown or not follows)
    return size > available and (size in (UNKNOWN, STREAMED, UNKNOWN_LONG) or unknown)


def _next_chunk(content: bytes, place: int, size: int) -> int:
    """Where the chunk after one of that size begins: at an even offset, unless its writer left out
    the padding byte.
    """
    bare, padded = place + size, place + size + size % 2
    if bare != padded and content[bare : bare + 1] != b"\0":
        names = content[padded : padded + 4], content[bare : bare + 4]
        if names[0] not in KNOWN and (names[1] in KNOWN or _is_name(names[1]) > _is_name(names[0])):
            return bare
    return padded


def _is_name(kind: bytes) -> bool:
    return len(kind) == 4 and kind.isascii() and kind.decode("ascii").isprintable()


def _unpack(data: bytes, form: bytes, name: str) -> tuple[Channels, int]:
    """Samples by the format chunk: code, channels, rate, bytes a second, bytes a frame, bits.

    Where fewer bits are valid than a sample has (WAVE_FORMAT_EXTENSIBLE), they are the upper ones:
    full scale is the same.
    """
    if len(form) < 16:
        raise DataError(f"{name}: its format chunk has {len(form)} bytes rather than 16; {REMEDY}")
    code, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", form)
    if code == EXTENSIBLE and len(form) >= 26:
        code = struct.unpack_from("<H", form, 24)[0]  # the first bytes of the sub-format
    if (code, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        known = CODECS.get(
            code,
            f"{bits}-bit"
            f" {'PCM' if code == PCM else 'float' if code == FLOAT else f'format {code}'}",
        )
        raise DataError(f"{name}: encoded as {known}; convert it to 16-bit PCM{SKIP}")
    if not channels or not 0 < rate <= MOST_RATE or frame != channels * bits // 8:
        raise DataError(
            f"{name}: its header says {channels} channels, {rate} Hz, {frame} bytes a frame;"
            f" {REMEDY}"
        )
    if len(data) % frame:
        raise DataError(
            f"{name}: cut off: {len(data):,} bytes of samples are not a multiple of {frame};"
            f" {REMEDY}"
        )
    check_size(len(data) * 8 // bits, name)
    return _to_float(data, code, bits).reshape(-1, channels), rate


def _to_float(data: bytes, code: int, bits: int) -> Channels:
    if code == FLOAT:
        # what float32 cannot hold becomes infinite, which is refused
        with np.errstate(over="ignore"):
            return np.frombuffer(data, f"<f{bits // 8}").astype(np.float32)
    if bits == 8:
        return ((np.frombuffer(data, np.uint8) - np.float32(128)) / 128).astype(np.float32)
    if bits == 24:  # each sample becomes the upper three bytes of an int32
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    return (np.frombuffer(data, f"<i{bits // 8}") / 2.0 ** (bits - 1)).astype(np.float32)


def check_size(values: int, name: str) -> None:
    """Raise `DataError` for a recording with more values than fit into memory."""
    if values > MOST_VALUES:
        raise DataError(f"{name}: {values:,} values, more than {MOST_VALUES:,}; cut it into pieces")
