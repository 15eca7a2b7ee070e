"""Augmentation of sound, on whole batches: of samples, and of frames (SpecAugment).

All randomness is keyed by (seed, epoch, sample): what happens to a sample does not depend on the
batch or process it is in. Rows are zero-padded after their length, and again after each change.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Fraction, Natural, Options
from bigmodel_cli.data.order import Ints, draw
from bigmodel_cli.device import sent
from bigmodel_cli.lazy import F, Tensor, torch

Row = tuple[int, int, Ints, int]
"""(seed, epoch, samples (B,), stream): the key of a draw."""
Decibels = Annotated[float, Field(ge=0, le=100)]


def _uniform(row: Row, count: int, device: torch.device) -> Tensor:
    """(B, count) uniform numbers in [0, 1)."""
    seed, epoch, samples, stream = row
    return sent(torch.from_numpy(draw(seed, epoch, samples, stream, count)), device)


def real(lengths: Tensor, count: int) -> Tensor:
    """(B,) -> (B, count) bool: True before each row's length."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


class _SoundChange(Options):
    """A change of samples, or of frames; the base class changes nothing."""

    def longest(self, samples: int, rate: int) -> int:
        """The most samples that a row of that many samples may get."""
        return samples

    def apply(self, waves: Tensor, lengths: Tensor, rate: int, row: Row) -> tuple[Tensor, Tensor]:
        """(B, N), (B,) -> (B, N'), (B,)   the samples and their lengths."""
        return waves, lengths

    def mask(self, frames: Tensor, lengths: Tensor, row: Row) -> Tensor:
        """(B, mels, T) -> the same shape, lengths (B,) in frames."""
        return frames


class SpeedOptions(_SoundChange):
    """Played slower or faster, and lower or higher with it (Ko et al. 2015), by linear
    interpolation.
    """

    type: Literal["speed"] = "speed"
    factor: Annotated[
        list[Annotated[float, Field(ge=0.25, le=4)]], Field(min_length=2, max_length=2)
    ] = Field([0.9, 1.1], description="least and greatest speed")

    def longest(self, samples: int, rate: int) -> int:
        return math.ceil(samples / min(self.factor)) + 1

    def apply(self, waves: Tensor, lengths: Tensor, rate: int, row: Row) -> tuple[Tensor, Tensor]:
        low, high = self.factor
        speed = low + (high - low) * _uniform(row, 1, waves.device).double()
        lengths = (lengths / speed[:, 0]).ceil().long().clamp(min=1)
        place = torch.arange(int(lengths.max()), device=waves.device) * speed  # (B, N')
        first = place.long().clamp(max=waves.shape[1])
        # a recording fades to zero after its end, whatever its neighbours are
        waves = F.pad(waves, (0, 2))
        changed = torch.lerp(
            waves.gather(1, first), waves.gather(1, first + 1), (place - first).clamp(0, 1).float()
        )
        return changed * real(lengths, changed.shape[1]), lengths


class GainOptions(_SoundChange):
    """Louder or softer."""

    type: Literal["gain"] = "gain"
    decibels: Annotated[float, Field(gt=0, le=100)] = Field(
        6.0, description="largest change in decibels, either way"
    )

    def apply(self, waves: Tensor, lengths: Tensor, rate: int, row: Row) -> tuple[Tensor, Tensor]:
        change = (2 * _uniform(row, 1, waves.device) - 1) * self.decibels
        return waves * 10 ** (change / 20), lengths


class NoiseOptions(_SoundChange):
    """White noise over the recording, at a drawn ratio to the recording's own power."""

    type: Literal["noise"] = "noise"
    p: Fraction = Field(0.5, description="probability")
    snr: Annotated[list[Decibels], Field(min_length=2, max_length=2)] = Field(
        [10.0, 40.0], description="least and greatest signal-to-noise ratio in decibels"
    )

    def apply(self, waves: Tensor, lengths: Tensor, rate: int, row: Row) -> tuple[Tensor, Tensor]:
        count = waves.shape[1]
        u = _uniform(row, 2 + 2 * count, waves.device)
        ratio = self.snr[0] + u[:, 1:2] * (self.snr[1] - self.snr[0])
        power = waves.square().sum(1, keepdim=True) / lengths[:, None]
        scale = (power * 10 ** (-ratio / 10)).sqrt() * (u[:, :1] < self.p)
        # a sample's noise does not depend on how far the row is padded
        pair = u[:, 2:].unflatten(1, (count, 2))
        noise = (-2 * (1 - pair[..., 0]).log()).sqrt() * (
            2 * math.pi * pair[..., 1]
        ).cos()  # Box and Muller (1958)
        return waves + scale * noise * real(lengths, count), lengths


class TimeShiftOptions(_SoundChange):
    """Silence before or after the recording; in rows of fixed length, which keep the middle, it
    moves by half of that.
    """

    type: Literal["time_shift"] = "time_shift"
    seconds: Annotated[float, Field(gt=0, le=60)] = Field(0.1, description="of silence, at most")

    def longest(self, samples: int, rate: int) -> int:
        return samples + round(self.seconds * rate)

    def apply(self, waves: Tensor, lengths: Tensor, rate: int, row: Row) -> tuple[Tensor, Tensor]:
        most = round(self.seconds * rate)
        moved = ((2 * _uniform(row, 1, waves.device) - 1) * most).round().long()  # (B, 1)
        lengths = lengths + moved[:, 0].abs()
        # (B, N')
        place = torch.arange(int(lengths.max()), device=waves.device) - moved.clamp(min=0)
        inside = (place >= 0) & (place < waves.shape[1])
        return waves.gather(1, place.clamp(0, waves.shape[1] - 1)) * inside, lengths


class SpecAugmentOptions(_SoundChange):
    """Blocks of frames and of bands get the row's own mean (Park et al. 2019, SpecAugment, without
    time warping).
    """

    type: Literal["spec_augment"] = "spec_augment"
    time_masks: Natural = Field(2, description="blocks of frames")
    time_width: Natural = Field(20, description="their greatest width in frames (T in the paper)")
    time_fraction: Fraction = Field(
        0.25, description="their greatest width as a part of the row (p in the paper)"
    )
    mel_masks: Natural = Field(2, description="blocks of bands")
    mel_width: Natural = Field(8, description="their greatest width in bands (F in the paper)")

    @model_validator(mode="after")
    def _bounded(self) -> SpecAugmentOptions:
        if self.time_masks + self.mel_masks > 1000:
            raise ValueError("time_masks and mel_masks: at most 1,000 together")
        return self

    def mask(self, frames: Tensor, lengths: Tensor, row: Row) -> Tensor:
        """(B, mels, T) frames -> the same, with what is masked replaced by the row's mean; lengths
        (B,) in frames.

        The paper puts 0 there since its spectrograms have mean 0. Without normalisation 0 is
        silence, and after a change of loudness the training split's mean is not the row's. Padding
        is neither counted nor changed.
        """
        bands, count = frames.shape[1:]
        u = _uniform(row, 2 * (self.time_masks + self.mel_masks), frames.device).unflatten(
            1, (-1, 2)
        )
        hidden = torch.zeros_like(frames, dtype=torch.bool)
        widest = (lengths * self.time_fraction).clamp(max=self.time_width).floor()  # (B,)
        for number in range(self.time_masks):
            hidden |= _block(u[:, number], widest, lengths, count)[:, None, :]
        width = torch.full_like(widest, min(self.mel_width, bands))
        for number in range(self.time_masks, self.time_masks + self.mel_masks):
            hidden |= _block(u[:, number], width, torch.full_like(lengths, bands), bands)[
                :, :, None
            ]
        inside = real(lengths, count)[:, None, :]
        mean = torch.where(inside, frames, 0).sum((1, 2)) / (lengths * bands).clamp(min=1)
        return torch.where(hidden & inside, mean.to(frames.dtype)[:, None, None], frames)


def _block(u: Tensor, widest: Tensor, room: Tensor, count: int) -> Tensor:
    """(B, count) bool: a block of random width 0 to `widest` at a random position within `room`; u
    is (B, 2).
    """
    width = (u[:, 0] * (widest + 1)).floor()
    first = (u[:, 1] * (room - width + 1)).floor()
    place = torch.arange(count, device=u.device)
    return (place >= first[:, None]) & (place < (first + width)[:, None])


SoundAugmentOptions = Annotated[
    SpeedOptions | GainOptions | NoiseOptions | TimeShiftOptions | SpecAugmentOptions,
    Field(discriminator="type"),
]


class SoundAugmentation:
    """The changes of a spec: first those of samples, in their order, then those of frames."""

    def __init__(self, options: list[Any]) -> None:
        self.options = options

    def longest(self, samples: int, rate: int) -> int:
        """The most samples that a row of that many samples may get."""
        for options in self.options:
            samples = options.longest(samples, rate)
        return samples

    def change_samples(
        self, waves: Tensor, lengths: Tensor, rate: int, samples: Ints, epoch: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """(B, N), (B,) -> (B, N'), (B,)."""
        for index, options in enumerate(self.options):
            waves, lengths = options.apply(
                waves, lengths, rate, (seed, epoch, samples, 200 + index)
            )
        return waves, lengths

    def change_frames(
        self, frames: Tensor, lengths: Tensor, samples: Ints, epoch: int, seed: int
    ) -> Tensor:
        """(B, mels, T) normalised -> the same shape."""
        for index, options in enumerate(self.options):
            frames = options.mask(frames, lengths, (seed, epoch, samples, 200 + index))
        return frames
