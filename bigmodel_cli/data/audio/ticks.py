"""Round seconds and frequencies, and where they are on a recording's frames."""

from __future__ import annotations

import math

import numpy as np

from bigmodel_cli.config import MelConfig
from bigmodel_cli.data.audio.mel import middles_of

Ticks = list[tuple[float, str]]
"""Places along an axis, in cells from its beginning (0.5: the middle of the first), and names."""
MOST = 6
"""Ticks of an axis of time, at most."""
ROUND = (1, 2, 5)


def time_ticks(sound: MelConfig, frames: int) -> Ticks:
    """Round times on the axis of the frames, each of which is centred on its hop's first sample."""
    second = sound.rate / sound.hop  # in frames
    last = (frames - 1) / second
    step = _step(last / MOST)
    count = int(last / step + 1e-9)
    return [(i * step * second + 0.5, f"{i * step:.6g} s") for i in range(count + 1)]


def frequency_ticks(sound: MelConfig) -> Ticks:
    """1, 2, 5, 10, 20 ... Hz on the axis of the bands, as far as there are bands, from below."""
    middles = middles_of(sound).numpy()
    found = []
    for exponent in range(6):
        for hertz in (factor * 10**exponent for factor in ROUND):
            if middles[0] <= hertz <= middles[-1]:
                place = float(np.interp(hertz, middles, np.arange(len(middles))))
                found.append((place + 0.5, f"{hertz:,} Hz"))
    return found


def _step(least: float) -> float:
    """The smallest round number that is not less."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (*ROUND, 10) if f * power >= least * (1 - 1e-9))
