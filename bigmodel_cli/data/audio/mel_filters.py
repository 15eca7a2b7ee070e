"""Mel filters: triangles over the frequencies of a Fourier transform, on two scales."""

from __future__ import annotations

import math

from bigmodel_cli.lazy import Tensor, torch

BREAK, STEP, LOG_STEP = 1000.0, 200 / 3, math.log(6.4) / 27
"""Slaney's scale: below the break in Hz a mel is a step wide, above it a constant ratio."""


def mel_filters(mels: int, size: int, rate: int, low: float, high: float) -> Tensor:
    """(mels, size / 2 + 1) triangles of height 1, evenly spaced on the mel scale 2595 log10(1 + f /
    700).

    The scale is that of O'Shaughnessy (1987) as HTK computes it; the areas are not normalised.
    """
    return _triangles(mel_corners(mels, low, high), size, rate)


def mel_corners(mels: int, low: float, high: float) -> Tensor:
    """(mels + 2,) in Hz: band b rises from corner b to its middle at b + 1, and ends at b + 2."""
    ends = 2595 * torch.log10(1 + torch.tensor([low, high], dtype=torch.float64) / 700)
    places = torch.linspace(float(ends[0]), float(ends[1]), mels + 2, dtype=torch.float64)
    return 700 * (10 ** (places / 2595) - 1)


def slaney_filters(mels: int, size: int, rate: int, low: float, high: float) -> Tensor:
    """The same of equal area, 1 Hz times the number of bins in it, on Slaney's scale (1998).

    It is linear below 1,000 Hz and logarithmic above, as librosa's is by default.
    """
    corners = slaney_corners(mels, low, high)
    return _triangles(corners, size, rate) * (2 / (corners[2:] - corners[:-2]))[:, None]


def slaney_corners(mels: int, low: float, high: float) -> Tensor:
    """As `mel_corners`, on Slaney's scale."""
    places = torch.linspace(_slaney(low), _slaney(high), mels + 2, dtype=torch.float64)
    first = BREAK / STEP
    above = BREAK * ((places - first) * LOG_STEP).exp()
    return torch.where(places < first, places * STEP, above)


def _slaney(hertz: float) -> float:
    """The place on the scale."""
    if hertz < BREAK:
        return hertz / STEP
    return BREAK / STEP + math.log(hertz / BREAK) / LOG_STEP


def _triangles(corners: Tensor, size: int, rate: int) -> Tensor:
    """(mels + 2,) corners in Hz -> (mels, size / 2 + 1) triangles of height 1."""
    bins = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
