"""Log-mel spectrograms: the logarithm of the power in mel bands."""

from __future__ import annotations

import functools

from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.data.audio.mel_filters import (
    mel_corners,
    mel_filters,
    slaney_corners,
    slaney_filters,
)
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Tensor, torch

FLOOR = 1e-8
DECADES = 8
"""Range of the log power: frames are 0 for silence (power below the floor) and near 1 for a
full-scale sine.
"""
WHISPER_FLOOR = 1e-10


def frames_of(samples: int, hop: int) -> int:
    """The number of frames for that many samples: one is centred on each hop's first sample."""
    return -(-samples // hop)


def log_mel(waves: Tensor, sound: MelConfig, lengths: Tensor | None = None) -> Tensor:
    """(B, N) samples in -1..1 -> (B, mels, T) logarithms, with T = ceil(N / hop).

    `lengths` (B,) counts the samples of each row, None: all of them; behind them are zeros.
    """
    whisper = sound.features == "whisper"
    return _whisper(waves, sound, lengths) if whisper else _standard(waves, sound)


def _standard(waves: Tensor, sound: MelConfig) -> Tensor:
    """(B, N) -> (B, mels, T)   1 + log10(power + 1e-8) / 8.

    Power is |STFT|^2 over (sum of the window)^2, with a periodic Hann window and zeros before and
    after the samples, so that a row's frames do not depend on its padding.
    """
    size = fft_size(sound)
    padded = F.pad(waves, (size // 2, size // 2 + sound.hop))
    return 1 + (_power(padded, waves.shape[1], sound) + FLOOR).log10() / DECADES


def _whisper(waves: Tensor, sound: MelConfig, lengths: Tensor | None) -> Tensor:
    """(B, N) -> (B, mels, T)   (max(log10 power, loudest - 8) + 4) / 4 (Radford et al. 2022).

    Power is |STFT|^2 with a periodic Hann window, whose length is that of the transform; the
    samples are reflected at both ends of the row. The loudest is the row's. Equals
    `WhisperFeatureExtractor` of transformers, whose recordings are padded with silence (`padded`).
    """
    frames = frames_of(waves.shape[1], sound.hop)
    power = _power(_reflected(waves, sound, lengths), waves.shape[1], sound)
    logs = power.clamp(min=WHISPER_FLOOR).log10()
    if lengths is None:
        loudest = logs.amax((1, 2), keepdim=True)
    else:
        own = (lengths + sound.hop - 1) // sound.hop
        real = torch.arange(frames, device=logs.device) < own[:, None]
        silent = logs.masked_fill(~real[:, None, :], float("-inf"))
        loudest = silent.amax((1, 2), keepdim=True)
    return (torch.maximum(logs, loudest - DECADES) + 4) / 4


def _reflected(waves: Tensor, sound: MelConfig, lengths: Tensor | None) -> Tensor:
    """(B, N) -> (B, N + window + hop)   each row between its reflections, then zeros."""
    half, count = sound.window // 2, waves.shape[1]
    if count > half and (lengths is None or bool((lengths == count).all())):
        return F.pad(F.pad(waves, (half, half), mode="reflect"), (0, sound.hop))
    ends = torch.full((len(waves),), count, device=waves.device) if lengths is None else lengths
    at = torch.arange(-half, count + half + sound.hop, device=waves.device)
    last = (ends - 1)[:, None]
    place = torch.where(at.abs() > last, 2 * last - at.abs(), at.abs())
    inside = (at <= last + half) & (place >= 0)  # of a very short one the rest is silence
    return waves.gather(1, place.clamp(0, count - 1)) * inside


def _power(padded: Tensor, samples: int, sound: MelConfig) -> Tensor:
    """(B, N') with half a window before the samples -> (B, mels, T)   the power in the bands."""
    window, filters = _constants(sound, padded.device)
    # (B, size / 2 + 1, >= T)
    spectrum = torch.stft(
        padded, fft_size(sound), sound.hop, sound.window, window, center=False, return_complex=True
    )
    frames = spectrum[:, :, : frames_of(samples, sound.hop)]
    return filters @ torch.view_as_real(frames).square().sum(-1)


def fft_size(sound: MelConfig) -> int:
    """The smallest power of two that holds the window; of Whisper's features the window itself."""
    return sound.window if sound.features == "whisper" else 1 << (sound.window - 1).bit_length()


def filters_of(sound: MelConfig) -> Tensor:
    """(mels, size / 2 + 1)   the weights of the frequencies in each band."""
    made = slaney_filters if sound.features == "whisper" else mel_filters
    return made(sound.mels, fft_size(sound), sound.rate, sound.low, sound.high)


def middles_of(sound: MelConfig) -> Tensor:
    """(mels,)   the frequency in Hz in the middle of each band."""
    made = slaney_corners if sound.features == "whisper" else mel_corners
    return made(sound.mels, sound.low, sound.high)[1:-1]


def check_filters(sound: MelConfig) -> None:
    """Raise `SpecError` where a band is so narrow that no FFT bin of the window falls into it."""
    empty = int((filters_of(sound).sum(1) == 0).sum())
    if empty:
        raise SpecError(
            f"data.mels: {empty} of {sound.mels} bands hold no frequency that a window of"
            f" {sound.window} samples tells apart ({sound.rate / fft_size(sound):.0f} Hz); take"
            " fewer bands, or a longer window"
        )


@functools.lru_cache(maxsize=16)
def _constants(sound: MelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """(the window, the filters; of standard features over (sum of the window)^2).

    Whisper's window is computed in single precision, whose rounding is heard in the quiet bands.
    """
    whisper = sound.features == "whisper"
    window = torch.hann_window(sound.window, dtype=torch.float32 if whisper else torch.float64)
    filters = filters_of(sound)
    if not whisper:
        filters = filters / window.sum() ** 2
    return window.float().to(device), filters.float().to(device)


def normalise_frames(frames: Tensor, info: DatasetInfo) -> Tensor:
    """(x - mean) / std, with one mean and deviation for all bands."""
    return (frames - info.mean[0]) / info.std[0] if info.mean else frames
