"""Splits of recordings: each alone, or several joined into one; as pictures of frames, or as rows
of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import DatasetInfo, MelConfig, Options
from bigmodel_cli.console import say
from bigmodel_cli.data.audio.augment import SoundAugmentation, real
from bigmodel_cli.data.audio.mel import frames_of, log_mel, normalise_frames
from bigmodel_cli.data.audio.recordings import Recordings
from bigmodel_cli.data.audio.sound import Wave, decode, notes_said, seconds_apart
from bigmodel_cli.data.audio.targets import Targets
from bigmodel_cli.data.base import Say, Split
from bigmodel_cli.data.batches import padded
from bigmodel_cli.data.files import read_file
from bigmodel_cli.data.order import Ints, draw
from bigmodel_cli.data.targets import target_name
from bigmodel_cli.device import sent
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import F, Tensor, torch

DRAWN = 300
"""The stream of random numbers from which strings of recordings are drawn."""
Pause = Annotated[float, Field(ge=0, le=60)]


class JoinOptions(Options):
    """Strings of recordings, drawn from one split: new ones in each epoch of training, always the
    same in evaluation.
    """

    least: Annotated[int, Field(gt=0, le=1000)] = Field(
        3, description="fewest recordings in a string"
    )
    most: Annotated[int, Field(gt=0, le=1000)] = Field(7, description="most recordings in a string")
    pause: Annotated[list[Pause], Field(min_length=2, max_length=2)] = Field(
        [0.05, 0.3], description="shortest and longest silence between them, in seconds"
    )

    @model_validator(mode="after")
    def _ordered(self) -> JoinOptions:
        if self.least > self.most or self.pause[0] > self.pause[1]:
            raise ValueError("least and most, and the two pauses: the smaller comes first")
        return self

    def longest(self, recording: int, rate: int) -> int:
        """Samples of the longest string, given the longest recording."""
        return self.most * (recording + round(self.pause[1] * rate))

    def choose(
        self, rows: Ints, rate: int, samples: Ints, epoch: int, seed: int
    ) -> tuple[list[Ints], list[Ints]]:
        """For each sample its recordings, and the silence before each of them."""
        u = draw(seed, epoch, samples, DRAWN, 1 + 2 * self.most)
        counts = self.least + (u[:, 0] * (self.most - self.least + 1)).astype(np.int64)
        chosen = rows[(u[:, 1 : 1 + self.most].astype(np.float64) * len(rows)).astype(np.int64)]
        low, high = (round(seconds * rate) for seconds in self.pause)
        pauses = low + (u[:, 1 + self.most :] * (high - low + 1)).astype(np.int64)
        pauses[:, 0] = 0
        return [r[:n] for r, n in zip(chosen, counts, strict=True)], [
            p[:n] for p, n in zip(pauses, counts, strict=True)
        ]


class Bank:
    """The samples of all recordings (N,) int16 in one tensor, on the device where it is small
    enough.

    A recording's samples are its integers times its scale: full scale is at -1 and 1, and what is
    beyond it stays there.
    """

    def __init__(self, recordings: Recordings) -> None:
        self.samples = torch.from_numpy(recordings.samples)
        self.starts, self.lengths, self.scales = (
            recordings.starts,
            recordings.lengths,
            recordings.scales.tolist(),
        )

    def to(self, device: torch.device) -> None:
        """Move to the device."""
        if device.type != "cpu":
            self.samples = self.samples.to(device)

    def rows(self, recordings: list[Ints], pauses: list[Ints]) -> tuple[Tensor, Tensor]:
        """Recordings one after the other, a pause before each: (B, N) float, zero behind each row's
        length (B,).
        """
        lengths = [
            int(self.lengths[r].sum() + p.sum()) for r, p in zip(recordings, pauses, strict=True)
        ]
        out = torch.zeros(len(lengths), max(lengths), device=self.samples.device)
        for row, (own, before) in enumerate(zip(recordings, pauses, strict=True)):
            place = 0
            for recording, pause in zip(own.tolist(), before.tolist(), strict=True):
                first, length = int(self.starts[recording]), int(self.lengths[recording])
                place += pause
                own_samples = self.samples[first : first + length]
                torch.mul(own_samples, self.scales[recording], out=out[row, place : place + length])
                place += length
        return out, sent(torch.tensor(lengths), out.device)


@dataclass
class SoundSplit(Split):
    """{"image": (B, 1, mels, T)} where sound has a fixed length, else {"frames": (B, T, mels),
    "lengths": (B,)}.

    With "key" (B,), and the target under `target_name`, or "target" (B, L) with the units of a
    transcript, padded with -1; or its start, prompt, tokens and end, with "loss_mask" (B, L) where
    there is a prompt.
    """

    bank: Bank
    rows: Ints  # (N,) the recordings of this split
    targets: Targets  # of all recordings of the bank
    join: JoinOptions | None
    info: DatasetInfo
    augmentation: SoundAugmentation
    resident: bool
    names: tuple[str, ...] = ()  # of all recordings

    def __post_init__(self) -> None:
        # None where all have one length, or strings are drawn anew in each epoch
        if self.sound.length is None and self.sound.padded is None and self.join is None:
            self.lengths = -(-self.bank.lengths[self.rows] // self.sound.hop)

    def __len__(self) -> int:
        return len(self.rows)

    def longest_rows(self) -> tuple[int, ...]:
        """(frames,), and of an encoder-decoder also of the targets without their last token.

        Augmentation may lengthen them, and strings of recordings are drawn.
        """
        if self.sound.length is not None:
            return ()
        batch = self.long_batch()
        written = () if self.targets.spoken is None else (batch["target"].shape[1] - 1,)
        return (batch["frames"].shape[1], *written)

    def texts(self) -> tuple[list[str], list[str]]:
        """(names, transcripts) of every sample."""
        spoken = self.targets.spoken
        if spoken is None:
            return super().texts()
        chosen, _ = self.made_of(np.arange(len(self)), 0, 0)
        names = [" + ".join(self.names[i] for i in own.tolist()) for own in chosen]
        return names, [spoken.text(own) for own in chosen]

    def to(self, device: torch.device) -> None:
        self.bank.to(device)

    @property
    def sound(self) -> MelConfig:
        """How sound becomes frames."""
        assert self.info.sound is not None
        return self.info.sound

    def redrawn(self) -> str | None:
        if self.join is not None:
            return "data.join strings other recordings together in each epoch"
        changes = self.augmentation.options
        return "data.augment changes recordings anew in each epoch" if changes else None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The samples, augmented by (seed, epoch, sample) where asked."""
        chosen, pauses = self.made_of(samples, epoch, seed)
        waves, lengths = self.bank.rows(chosen, pauses)
        change = self.augmentation
        if augment:
            waves, lengths = change.change_samples(
                waves, lengths, self.sound.rate, samples, epoch, seed
            )
        frames, lengths = to_frames(waves, lengths, self.info)
        if augment:
            frames = change.change_frames(frames, lengths, samples, epoch, seed)
        return {**named(frames, lengths, self.info), **self.targets_of(chosen, frames.device)}

    def own(self, batch: dict[str, Tensor]) -> Tensor:
        """The numbers of a batch's frames, without padding."""
        if self.sound.length is not None:
            return batch["image"]
        return batch["frames"][real(batch["lengths"], batch["frames"].shape[1])]

    def made_of(self, samples: Ints, epoch: int, seed: int) -> tuple[list[Ints], list[Ints]]:
        """For each sample its recordings, and the silence before each of them."""
        if self.join is not None:
            return self.join.choose(self.rows, self.sound.rate, samples, epoch, seed)
        return [self.rows[i : i + 1] for i in samples], [np.zeros(1, np.int64)] * len(samples)

    def targets_of(self, chosen: list[Ints], device: torch.device) -> dict[str, Tensor]:
        """The labels or numbers of single recordings, or transcripts padded to the longest."""
        if self.targets.labels is not None:
            rows = torch.from_numpy(self.targets.labels[[int(r[0]) for r in chosen]])
            return {str(target_name(self.info)): sent(rows, device)}
        spoken = self.targets.spoken
        if spoken is not None:
            target = sent(padded([spoken.row(own) for own in chosen]), device)
            if spoken.given == 1:
                return {"target": target}
            learnt = torch.arange(target.shape[1], device=device) >= spoken.given
            return {"target": target, "loss_mask": learnt.expand_as(target)}
        units, between = self.targets.units, self.targets.between
        parts = [[part for r in own for part in (between, units[r])][1:] for own in chosen]
        return {"target": sent(padded([np.concatenate(own) for own in parts]), device)}


def to_frames(waves: Tensor, lengths: Tensor, info: DatasetInfo) -> tuple[Tensor, Tensor]:
    """(B, N) samples of lengths (B,) -> normalised frames (B, mels, T), zero after each row's
    length (B,) in frames.

    Where sound has a fixed length, the middle of each row is taken, or silence put around it, and
    all rows are equally long; so they are where silence is added behind them.
    """
    assert info.sound is not None
    sound = info.sound
    if sound.length is not None:
        waves, lengths = (
            middle(waves, lengths, sound.length),
            torch.full_like(lengths, sound.length),
        )
    if sound.padded is not None:
        waves = F.pad(waves, (0, sound.padded - waves.shape[1]))
        lengths = torch.full_like(lengths, sound.padded)
    frames = normalise_frames(log_mel(waves, sound, lengths), info)
    lengths = (lengths + sound.hop - 1) // sound.hop
    if sound.length is None:
        frames = frames * real(lengths, frames.shape[2])[:, None, :]
    return frames, lengths


def middle(waves: Tensor, lengths: Tensor, length: int) -> Tensor:
    """(B, N) -> (B, length) each row's samples, centred: cut, or with zeros around them."""
    place = torch.arange(length, device=waves.device) - ((length - lengths) // 2)[:, None]
    inside = (place >= 0) & (place < lengths[:, None])
    return waves.gather(1, place.clamp(0, waves.shape[1] - 1)) * inside


def named(frames: Tensor, lengths: Tensor, info: DatasetInfo) -> dict[str, Tensor]:
    """Frames (B, mels, T) under the names in a batch."""
    if info.image_shape is not None:
        return {"image": frames[:, None]}
    return {"frames": frames.transpose(1, 2).contiguous(), "lengths": lengths}


def longest_frames(split: SoundSplit) -> int:
    """Frames of the longest row that a split can yield in training."""
    return frames_of(longest_samples(split), split.sound.hop)


def longest_samples(split: SoundSplit) -> int:
    """The same in samples, without the silence behind it."""
    longest = int(split.bank.lengths[split.rows].max())
    if split.join is not None:
        longest = split.join.longest(longest, split.sound.rate)
    return split.augmentation.longest(longest, split.sound.rate)


def batch_of_sounds(waves: Sequence[Wave], info: DatasetInfo) -> dict[str, Tensor]:
    """Recordings from `read_sound` as a batch for a model with this DatasetInfo.

    {"image": (B, 1, mels, T)}, or {"frames": (B, T, mels), "lengths": (B,)}.
    """
    lengths = torch.tensor([len(wave.values) for wave in waves])
    rows = padded([wave.floats() for wave in waves], 0)
    frames, lengths = to_frames(rows, lengths, info)
    return named(frames, lengths, info)


def read_sound(path: Path, info: DatasetInfo, say: Say = say) -> Wave:
    """The samples of a recording; assumptions about them are reported.

    Raises `DataError` where it cannot be read, or is longer than the model's longest row.
    """
    assert info.sound is not None
    rate = info.sound.rate
    wave = decode(read_file(path), str(path), rate)
    longest = None if info.context is None else info.context * info.sound.hop
    if longest is not None and len(wave.values) > longest:
        length, most = seconds_apart(len(wave.values), longest, rate)
        raise DataError(
            f"{path}: {length} s long, and the model reads up to {most} s; cut it into pieces"
        )
    for sentence in notes_said((note, str(path)) for note in wave.notes):
        say(sentence)
    return wave
