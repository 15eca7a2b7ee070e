"""Encoded sound to samples, with every conversion stated.

Several channels become their mean, and another rate is resampled. Nothing is cut: samples are kept
as 16-bit integers with a scale of the recording's own, a power of two (block floating point), so
that a quiet recording keeps 15 bits below its own peak, PCM of up to 16 bits is kept to the bit,
and what lies beyond full scale (float samples, MP3 and Vorbis, resampling) stays beyond it. Float
samples are read as they are; where they are integers of 16, 24 or 32 bits written as floats, they
are divided by that full scale. WAV is read by wav.py; FLAC, OGG and MP3 by soundfile (pip install
'bigmodel[audio]').
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from bigmodel_cli.console import counted
from bigmodel_cli.data.audio.wav import REMEDY, Channels, check_size, read_wav
from bigmodel_cli.errors import DataError
from bigmodel_cli.packages import need

Samples = np.ndarray[Any, np.dtype[np.float32]]
Waves = np.ndarray[Any, np.dtype[np.int16]]

WAV = (".wav", ".wave")
OTHERS = (".flac", ".ogg", ".oga", ".opus", ".mp3")
ENDINGS = WAV + OTHERS
FULL_SCALE = 32768
INTEGERS = (2**15, 2**23, 2**31)
"""Full scales of integer samples that are written as floats."""
LOUDEST = 256.0
"""Float samples beyond this multiple of full scale (48 dB) are integers, even where they are not
whole (mixed, or resampled).
"""
CANCELLED = 0.01
"""Part of the channels' mean power: where their mean has less, they cancel one another."""
QUIETEST = -60
ZEROS, BETA, CUTOFF = 24, 9.0, 0.95
"""The resampling filter: zero crossings on each side, Kaiser's beta, and the cut-off over the lower
Nyquist frequency.
"""
CHUNK, BLOCK = 1 << 14, 1 << 20
"""The number of outputs, and of filter coefficients, that are computed at a time."""
INTEGER, CANCELLING = "integer", "cancelling"
NOTES = {
    INTEGER: (
        "of float samples that are integers of 16, 24 or 32 bits, divided by that full scale"
    ),
    CANCELLING: (
        "whose channels cancel one another: their mean, which is read, is all but silence"
    ),
}
"""What is worth reporting about a recording, by the notes of `Wave`."""


class Wave(NamedTuple):
    """A recording: `values` (N,) int16 times `scale` are its samples; `notes` are keys of
    `NOTES`.
    """

    values: Waves
    scale: float
    notes: tuple[str, ...] = ()

    def floats(self) -> Samples:
        """The samples (N,), full scale at -1 and 1."""
        return self.values * np.float32(self.scale)


def decode(content: bytes, name: str, rate: int) -> Wave:
    """An encoded recording as samples at `rate`. Raises `DataError` naming it."""
    if not content:
        raise DataError(f"{name}: zero bytes long; {REMEDY}")
    samples, file_hz = (
        read_wav(content, name) if name.lower().endswith(WAV) else _read_other(content, name)
    )
    if not samples.size:
        raise DataError(f"{name}: no samples in it; {REMEDY}")
    check_size(-(-len(samples) * rate // file_hz), name)  # at the wanted rate
    if not np.isfinite(samples).all():
        place = int(np.flatnonzero(~np.isfinite(samples).all(1))[0])
        raise DataError(f"{name}: sample {place:,} is not a finite number; {REMEDY}")
    full = _full_scale(samples, name)
    mixed = samples.mean(1, dtype=np.float32)
    notes = [INTEGER] * (full > 1) + [CANCELLING] * _cancel(samples, mixed)
    return to_wave(resample(mixed if full == 1 else mixed / np.float32(full), file_hz, rate), notes)


def to_wave(samples: Samples, notes: Iterable[str] = ()) -> Wave:
    """Samples (N,), rounded to 16 bits relative to the smallest power of two above their peak."""
    # 0.5 <= part < 1, or 0
    part, exponent = math.frexp(max(-float(samples.min(initial=0)), float(samples.max(initial=0))))
    if part == 0.5 and samples.max() < -samples.min():
        exponent -= 1  # 16 bits hold -1, and not 1
    exponent = max(exponent, QUIETEST) if part else 0
    values = np.ldexp(samples, 15 - exponent).round().clip(-FULL_SCALE, FULL_SCALE - 1)
    return Wave(values.astype(np.int16), math.ldexp(1 / FULL_SCALE, exponent), tuple(notes))


def notes_said(notes: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence for each kind of note, of (note, name of the recording)."""
    named: dict[str, list[str]] = {}
    for note, name in notes:
        named.setdefault(note, []).append(name)
    return [
        f"warning: {counted(len(names), 'recording')} {NOTES[note]}; the first: {names[0]}"
        for note, names in named.items()
    ]


def seconds_apart(samples: int, most: int, rate: int) -> tuple[str, str]:
    """Two unequal lengths in seconds, to as many decimals as tell them apart."""
    digits = 1
    while f"{samples / rate:.{digits}f}" == f"{most / rate:.{digits}f}":
        digits += 1
    return f"{samples / rate:.{digits}f}", f"{most / rate:.{digits}f}"


def _full_scale(samples: Channels, name: str) -> int:
    """1, or the full scale of float samples that are integers: all whole, or far louder than sound
    in -1..1.

    A square wave beyond full scale also has whole samples, of two or three values.
    """
    peak = float(np.abs(samples).max())
    if peak <= 1 or (
        peak < LOUDEST and ((samples != np.round(samples)).any() or len(np.unique(samples)) < 4)
    ):
        return 1
    if peak > INTEGERS[-1]:
        raise DataError(
            f"{name}: samples up to {peak:.3g}, where full scale is 1 (or 2^31 for integers);"
            f" {REMEDY}"
        )
    return next(full for full in INTEGERS if peak <= full)


def _cancel(samples: Channels, mixed: Samples) -> bool:
    if samples.shape[1] == 1:
        return False
    power = float(np.square(samples, dtype=np.float64).mean())
    return float(np.square(mixed, dtype=np.float64).mean()) < CANCELLED * power


def _read_other(content: bytes, name: str) -> tuple[Channels, int]:
    """(samples (N, channels), rate) by libsndfile."""
    soundfile = need("soundfile", "audio", f"{name}: reading it")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            check_size(file.frames * file.channels, name)
            samples: Channels = file.read(dtype="float32", always_2d=True)
            if len(samples) != file.frames:
                raise DataError(
                    f"{name}: cut off: {len(samples):,} samples of {file.frames:,}; {REMEDY}"
                )
            return samples, int(file.samplerate)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        reason = str(error).replace("\n", " ").strip().rstrip(".")
        reason = reason.rpartition(">: ")[2]  # after libsndfile's name of our buffer
        raise DataError(f"{name}: cannot be decoded ({reason}); {REMEDY}") from None


def resample(samples: Samples, rate: int, wanted: int) -> Samples:
    """(N,) at `rate` -> (ceil(N * wanted / rate),) at `wanted`, by a windowed sinc (Kaiser), one
    filter phase per output.

    Output m is at m * down / up of the input, where up / down is the ratio of the rates in lowest
    terms. Equals `scipy.signal.resample_poly` with the same filter.
    """
    if rate == wanted:
        return samples
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    count = -(-len(samples) * up // down)
    taps = 2 * _width(up, down) + 2
    # odd rates have more phases than a short recording uses
    table = _phases(up, down) if up <= count else None
    padded = np.pad(samples, (taps // 2 - 1, taps))
    rows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    out = np.empty(count, np.float32)
    step = max(1, min(CHUNK, BLOCK // taps))
    for first in range(0, count, step):
        place = np.arange(first, min(count, first + step)) * down
        weights = _weights(place % up, up, down) if table is None else table[place % up]
        out[first : first + step] = np.einsum("nk,nk->n", rows[place // up], weights)
    return out


def _width(up: int, down: int) -> int:
    """How many inputs on each side of an output contribute to it."""
    return math.ceil(ZEROS / (CUTOFF * min(1.0, up / down)))


@functools.lru_cache(maxsize=8)
def _phases(up: int, down: int) -> Samples:
    """(up, taps) the weights of the inputs around an output, for each phase p / up of the
    output.
    """
    table = np.empty((up, 2 * _width(up, down) + 2), np.float32)
    step = max(1, BLOCK // table.shape[1])
    for first in range(0, up, step):
        table[first : first + step] = _weights(np.arange(first, min(up, first + step)), up, down)
    return table


def _weights(phases: np.ndarray[Any, np.dtype[np.int64]], up: int, down: int) -> Samples:
    """(N, taps)   the rows of these phases (N,)."""
    # of the input's Nyquist frequency; in inputs
    scale, width = (
        CUTOFF * min(1.0, up / down),
        _width(up, down),
    )
    # (N, taps) in input samples
    away = np.arange(-width, width + 2)[None, :] - phases[:, None] / up
    inside = np.clip(1 - (away / width) ** 2, 0, None)
    window = np.where(np.abs(away) <= width, np.i0(BETA * np.sqrt(inside)) / np.i0(BETA), 0)
    return (scale * np.sinc(scale * away) * window).astype(np.float32)
