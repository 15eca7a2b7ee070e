"""Encoded sound to samples, with every conversion stated.

Several channels become their mean, another rate is resampled, and samples are kept as 16-bit integers: what is louder than full
scale is cut there. WAV is read here; FLAC, OGG and MP3 by soundfile (pip install 'bigmodel[audio]').
"""

from __future__ import annotations

import functools
import io
import math
import struct
from typing import Any

import numpy as np

from bigmodel_cli.errors import DataError

Samples = np.ndarray[Any, np.dtype[np.float32]]
Waves = np.ndarray[Any, np.dtype[np.int16]]

WAV = (".wav", ".wave")
OTHERS = (".flac", ".ogg", ".oga", ".opus", ".mp3")
ENDINGS = WAV + OTHERS
FULL_SCALE = 32768
MOST_VALUES = 1 << 28
"""Values in a recording, over all channels: what is longer is refused before it is unpacked."""
MOST_RATE = 768_000
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
CODECS = {2: "Microsoft ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 49: "GSM 6.10", 80: "MPEG", 85: "MP3"}
ZEROS, BETA, CUTOFF = 24, 9.0, 0.95
"""The resampling filter: zero crossings on each side, Kaiser's beta, and the cut-off over the lower Nyquist frequency."""
CHUNK = 1 << 14
REMEDY = "repair or remove it, or set data.on_bad: skip"


def decode(content: bytes, name: str, rate: int) -> Waves:
    """An encoded recording as (N,) int16 samples at `rate`. Raises `DataError` naming it."""
    if not content:
        raise DataError(f"{name}: zero bytes long; {REMEDY}")
    samples, own = _read_wav(content, name) if name.lower().endswith(WAV) else _read_other(content, name)
    if not samples.size:
        raise DataError(f"{name}: no samples in it; {REMEDY}")
    if not np.isfinite(samples).all():
        place = int(np.flatnonzero(~np.isfinite(samples).all(1))[0])
        raise DataError(f"{name}: sample {place:,} is not a finite number; {REMEDY}")
    return to_int16(resample(samples.mean(1, dtype=np.float32), own, rate))


def to_int16(samples: Samples) -> Waves:
    """Samples in -1..1, rounded; what lies outside is cut."""
    return (samples * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def _read_wav(content: bytes, name: str) -> tuple[Samples, int]:
    """(samples (N, channels) in -1..1, rate) of a RIFF WAVE file: PCM of 8, 16, 24 or 32 bits, float of 32 or 64."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise DataError(f"{name}: not a WAV file: it begins with {content[:12]!r}; {REMEDY}")
    form: bytes | None = None
    place = 12
    while place + 8 <= len(content):
        kind, size = content[place : place + 4], struct.unpack_from("<I", content, place + 4)[0]
        place += 8
        if kind == b"fmt ":
            form = content[place : place + size]
        elif kind == b"data" and form is not None:
            there = len(content) - place
            # A recorder that writes into a pipe cannot come back to fill in the length, and leaves all bits set.
            if size == 0xFFFFFFFF:
                size = there
            elif size > there:
                raise DataError(f"{name}: cut off: {there:,} bytes of samples, and its header says {size:,}; {REMEDY}")
            return _unpack(content[place : place + size], form, name)
        place += size + size % 2  # chunks begin at even places
    missing = "format" if form is None else "samples"
    raise DataError(f"{name}: cut off: a WAV file without its chunk of {missing}; {REMEDY}")


def _unpack(data: bytes, form: bytes, name: str) -> tuple[Samples, int]:
    """Samples by the format chunk: code, channels, rate, bytes a second, bytes a frame, bits."""
    if len(form) < 16:
        raise DataError(f"{name}: its format chunk has {len(form)} bytes rather than 16; {REMEDY}")
    code, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", form)
    if code == EXTENSIBLE and len(form) >= 26:
        code = struct.unpack_from("<H", form, 24)[0]  # the first bytes of the sub-format
    if (code, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        known = CODECS.get(
            code, f"{bits}-bit {'PCM' if code == PCM else 'float' if code == FLOAT else f'format {code}'}"
        )
        raise DataError(f"{name}: encoded as {known}; convert it to 16-bit PCM, or set data.on_bad: skip")
    if not channels or not 0 < rate <= MOST_RATE or frame != channels * bits // 8:
        raise DataError(f"{name}: its header says {channels} channels, {rate} Hz, {frame} bytes a frame; {REMEDY}")
    if len(data) % frame:
        raise DataError(f"{name}: cut off: {len(data):,} bytes of samples are not a multiple of {frame}; {REMEDY}")
    _check_size(len(data) * 8 // bits, name)
    return _to_float(data, code, bits).reshape(-1, channels), rate


def _to_float(data: bytes, code: int, bits: int) -> Samples:
    if code == FLOAT:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
            return np.frombuffer(data, f"<f{bits // 8}").astype(np.float32)
    if bits == 8:
        return ((np.frombuffer(data, np.uint8) - np.float32(128)) / 128).astype(np.float32)
    if bits == 24:  # each sample becomes the upper three bytes of an int32
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    return (np.frombuffer(data, f"<i{bits // 8}") / 2.0 ** (bits - 1)).astype(np.float32)


def _read_other(content: bytes, name: str) -> tuple[Samples, int]:
    """(samples (N, channels), rate) by libsndfile."""
    try:
        import soundfile
    except (ImportError, OSError):
        raise DataError(f"{name}: needs soundfile to be read: pip install 'bigmodel[audio]'") from None
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            _check_size(file.frames * file.channels, name)
            samples: Samples = file.read(dtype="float32", always_2d=True)
            if len(samples) != file.frames:
                raise DataError(f"{name}: cut off: {len(samples):,} samples of {file.frames:,}; {REMEDY}")
            return samples, int(file.samplerate)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        reason = str(error).replace("\n", " ").strip().rstrip(".")
        raise DataError(f"{name}: cannot be decoded ({reason}); {REMEDY}") from None


def _check_size(values: int, name: str) -> None:
    if values > MOST_VALUES:
        raise DataError(f"{name}: {values:,} values, more than {MOST_VALUES:,}; cut it into pieces")


def resample(samples: Samples, rate: int, wanted: int) -> Samples:
    """(N,) at `rate` -> (ceil(N * wanted / rate),) at `wanted`, by a windowed sinc (Kaiser), one phase of it for each output.

    Output m lies at m * down / up of the input, where up / down is the ratio of the rates in lowest terms. Equals
    `scipy.signal.resample_poly` with the same filter.
    """
    if rate == wanted:
        return samples
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    table = _phases(up, down)  # (up, taps)
    taps = table.shape[1]
    count = -(-len(samples) * up // down)
    padded = np.pad(samples, (taps // 2 - 1, taps))
    rows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    out = np.empty(count, np.float32)
    for first in range(0, count, CHUNK):
        place = np.arange(first, min(count, first + CHUNK)) * down
        out[first : first + CHUNK] = np.einsum("nk,nk->n", rows[place // up], table[place % up])
    return out


@functools.lru_cache(maxsize=8)
def _phases(up: int, down: int) -> Samples:
    """(up, taps)   what each of the inputs around an output is weighted with, for each phase p / up of the output."""
    scale = CUTOFF * min(1.0, up / down)  # of the input's Nyquist frequency
    width = math.ceil(ZEROS / scale)  # inputs on each side
    away = np.arange(-width, width + 2)[None, :] - np.arange(up)[:, None] / up  # (up, taps) in input samples
    inside = np.clip(1 - (away / width) ** 2, 0, None)
    window = np.where(np.abs(away) <= width, np.i0(BETA * np.sqrt(inside)) / np.i0(BETA), 0)
    return (scale * np.sinc(scale * away) * window).astype(np.float32)
