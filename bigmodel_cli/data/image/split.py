"""Splits of images: one tensor on the device, or decoded sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.base import Split
from bigmodel_cli.data.image.augment import Augmentation
from bigmodel_cli.data.image.pixels import decode, normalise
from bigmodel_cli.data.image.sources import Labels, RawSplit
from bigmodel_cli.data.normalisation import sampled
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.targets import target_name
from bigmodel_cli.device import sent
from bigmodel_cli.lazy import Tensor, torch


class Resident:
    """All pixels (N, C, H, W) uint8 in one tensor."""

    resident = True

    def __init__(self, pixels: Any, labels: Labels) -> None:
        self.pixels, self.labels = torch.from_numpy(pixels), torch.from_numpy(labels)
        self.shape: tuple[int, int, int] = (pixels.shape[1], pixels.shape[2], pixels.shape[3])

    def part(self, chosen: Ints) -> Resident:
        """Only those samples."""
        return Resident(self.pixels.numpy()[chosen], self.labels.numpy()[chosen])

    def to(self, device: torch.device) -> None:
        """Move to the device."""
        self.pixels, self.labels = self.pixels.to(device), self.labels.to(device)

    def take(self, samples: Ints) -> tuple[Tensor, Tensor]:
        """(pixels (B, C, H, W), labels (B,)) of those samples."""
        index = sent(torch.from_numpy(samples), self.pixels.device)
        return self.pixels[index], self.labels[index]

    def some(self, most: int) -> Tensor:
        """(N, C, H, W) pixels to measure on: all of them."""
        return self.pixels


class Streamed:
    """Encoded images, decoded on demand."""

    resident = False

    def __init__(self, raw: RawSplit, shape: tuple[int, int, int], white: float | None) -> None:
        self.raw, self.shape, self.labels, self.white = (
            raw,
            shape,
            torch.from_numpy(raw.labels),
            white,
        )

    def part(self, chosen: Ints) -> Streamed:
        """Only those samples."""
        return Streamed(self.raw.part(chosen), self.shape, self.white)

    def to(self, device: torch.device) -> None:
        """No-op: nothing is resident."""

    def take(self, samples: Ints) -> tuple[Tensor, Tensor]:
        """(pixels (B, C, H, W), labels (B,)) of those samples."""
        channels, size = self.shape[0], self.shape[1:]
        pixels = [
            decode(self.raw.encoded[i], self.raw.names[i], channels, size, self.white)
            for i in samples.tolist()
        ]
        return torch.from_numpy(np.stack(pixels)), self.labels[torch.from_numpy(samples)]

    def some(self, most: int) -> Tensor:
        """(at most `most`, C, H, W) pixels to measure on."""
        return self.take(sampled(len(self.labels), most))[0]


class ImageSplit(Split):
    """{"image": (B, C, H, W) float32 normalised, "key": (B,)}, and the target under
    `target_name`.
    """

    def __init__(
        self, source: Resident | Streamed, info: DatasetInfo, augmentation: Augmentation
    ) -> None:
        self.source, self.info, self.augmentation = source, info, augmentation
        self.resident, self.target = source.resident, target_name(info)
        self.count = len(source.labels)

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device) -> None:
        self.source.to(device)

    def redrawn(self) -> str | None:
        changes = self.augmentation.changes
        return "data.augment changes images anew in each epoch" if changes else None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The samples, normalised, and augmented by (seed, epoch, sample) where asked."""
        pixels, labels = self.source.take(samples)
        images = pixels.float().div_(255)
        if augment:
            images = self.augmentation(images, samples, epoch, seed)
        batch = {"image": normalise(images, self.info)}
        return {**batch, self.target: labels} if self.target is not None else batch
