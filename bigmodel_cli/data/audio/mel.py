"""Log-mel spectrograms: the logarithm of the power in mel bands."""

from __future__ import annotations

import functools

from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Tensor, torch

FLOOR = 1e-8
DECADES = 8
"""Range of the log power: frames are 0 for silence (power below the floor) and near 1 for a
full-scale sine.
"""


def frames_of(samples: int, hop: int) -> int:
    """The number of frames for that many samples: one is centred on each hop's first sample."""
    return -(-samples // hop)


def log_mel(waves: Tensor, sound: MelConfig) -> Tensor:
    """(B, N) samples in -1..1 -> (B, mels, T) 1 + log10(power + 1e-8) / 8, with T = ceil(N / hop).

    Power is |STFT|^2 over (sum of the window)^2, with a periodic Hann window and zeros before and
    after the samples, so that a row's frames do not depend on its padding.
    """
    size = fft_size(sound.window)
    window, filters = _constants(sound, waves.device)
    count = frames_of(waves.shape[1], sound.hop)
    padded = F.pad(waves, (size // 2, size // 2 + sound.hop))
    # (B, size / 2 + 1, >= T)
    spectrum = torch.stft(
        padded, size, sound.hop, sound.window, window, center=False, return_complex=True
    )
    power = torch.view_as_real(spectrum[:, :, :count]).square().sum(-1)
    return 1 + (filters @ power + FLOOR).log10() / DECADES


def fft_size(window: int) -> int:
    """The smallest power of two that holds the window."""
    return 1 << (window - 1).bit_length()


def mel_filters(mels: int, size: int, rate: int, low: float, high: float) -> Tensor:
    """(mels, size / 2 + 1) triangles of height 1, evenly spaced on the mel scale 2595 log10(1 + f /
    700).

    The scale is that of O'Shaughnessy (1987) as HTK computes it; the areas are not normalised.
    """
    ends = 2595 * torch.log10(1 + torch.tensor([low, high], dtype=torch.float64) / 700)
    corners = 700 * (
        10 ** (torch.linspace(float(ends[0]), float(ends[1]), mels + 2, dtype=torch.float64) / 2595)
        - 1
    )
    bins = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def check_filters(sound: MelConfig) -> None:
    """Raise `SpecError` where a band is so narrow that no FFT bin of the window falls into it."""
    size = fft_size(sound.window)
    empty = int(
        (mel_filters(sound.mels, size, sound.rate, sound.low, sound.high).sum(1) == 0).sum()
    )
    if empty:
        raise SpecError(
            f"data.mels: {empty} of {sound.mels} bands hold no frequency that a window of"
            f" {sound.window} samples tells apart ({sound.rate / size:.0f} Hz); take fewer bands,"
            " or a longer window"
        )


@functools.lru_cache(maxsize=16)
def _constants(sound: MelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """(the window, the filters over (sum of the window)^2)."""
    window = torch.hann_window(sound.window, dtype=torch.float64)
    filters = (
        mel_filters(sound.mels, fft_size(sound.window), sound.rate, sound.low, sound.high)
        / window.sum() ** 2
    )
    return window.float().to(device), filters.float().to(device)


def normalise_frames(frames: Tensor, info: DatasetInfo) -> Tensor:
    """(x - mean) / std, with one mean and deviation for all bands."""
    return (frames - info.mean[0]) / info.std[0] if info.mean else frames
