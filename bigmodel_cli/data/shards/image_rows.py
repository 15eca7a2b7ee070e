"""Rows of images from shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.image.augment import Augmentation
from bigmodel_cli.data.image.pixels import decode, normalise
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.reading import lookup
from bigmodel_cli.data.shards.cache import ShardCache
from bigmodel_cli.data.shards.near import InShards, in_order
from bigmodel_cli.data.shards.records import Records
from bigmodel_cli.data.shards.shard import Shard
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.progress import progress

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Form:
    """How samples become images: the fields of the image and its class, how many classes there are,
    (C, H, W), the changes in training, how many shards are mixed, and whether the images of each
    class are counted.
    """

    image: str
    label: str
    classes: int
    shape: Shape
    augmentation: Augmentation
    mixed: int
    counted: bool


class ImageRows(InShards):
    """{"image": (B, C, H, W) float32 normalised, "label": (B,), "key": (B,)}."""

    def __init__(self, shards: Sequence[Shard], form: Form, cache: ShardCache, train: bool) -> None:
        self.shards, self.form, self.info = shards, form, DatasetInfo()
        self.opened: dict[int, Records] = {}
        self.class_counts = np.zeros(form.classes, np.int64)
        counts = self._counts(cache, form.counted and train)
        if not counts.any():
            raise DataError("the shards hold no image; look at data.train")
        super().__init__(counts, shards, cache, form.mixed if train else None)

    def _counts(self, cache: ShardCache, of_classes: bool) -> Ints:
        """(N,) how many samples each shard has: where no index says it, or those of each class are
        asked for, found once.
        """
        unknown = [n for n, s in enumerate(self.shards) if of_classes or s.count is None]
        counts = np.array([shard.count or 0 for shard in self.shards], np.int64)
        shards = [self.shards[number] for number in unknown]
        coming = in_order(shards, cache)
        with progress("counting images", sum(shard.size for shard in shards), "B") as shown:
            for turn, number in enumerate(unknown):
                found = self._counted(shards[turn], cache, of_classes, partial(coming, turn))
                counts[number] = sum(found)
                if of_classes:
                    self.class_counts += np.array(found, np.int64)
                shown.add(shards[turn].size)
        return counts

    def _counted(
        self, shard: Shard, cache: ShardCache, of_classes: bool, coming: Callable[[], None]
    ) -> list[int]:
        """How many samples a shard has, or how many of each class."""

        def count() -> list[int]:
            coming()
            with shard.held(cache) as path:
                if not of_classes:
                    return [len(self._records(shard, path))]
                form = shard.form.of_fields((self.form.label,))
                labels = [
                    self._label(row, f"{shard.place}: sample {number}")
                    for number, row in enumerate(form.open(path, shard.place))
                ]
            counts = np.bincount(np.array(labels, np.int64), minlength=self.form.classes)
            return [int(n) for n in counts]

        if not of_classes:
            return list(cached_json("shard-counts", [2, shard.key], count))
        return list(
            cached_json("shard-classes", [1, shard.key, self.form.label, self.form.classes], count)
        )

    def _records(self, shard: Shard, path: Path) -> Records:
        form = shard.form.of_fields((self.form.image, self.form.label))
        return form.open(path, shard.place)

    def redrawn(self) -> str | None:
        changes = self.form.augmentation.changes
        return "data.augment changes images anew in each epoch" if changes else None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The samples, normalised, and augmented by (seed, epoch, sample) where asked."""
        pixels, labels = self.pixels(samples)
        images = pixels.float().div_(255)
        if augment:
            images = self.form.augmentation(images, samples, epoch, seed)
        return {"image": normalise(images, self.info), "label": labels}

    def pixels(self, samples: Ints) -> tuple[Tensor, Tensor]:
        """(pixels (B, C, H, W) uint8, labels (B,)) of those samples."""
        numbers, within = self.shards_of(samples)
        found = [
            self._sample(number, place)
            for number, place in zip(numbers.tolist(), within.tolist(), strict=True)
        ]
        labels = torch.tensor([label for _, label in found])
        return torch.from_numpy(np.stack([image for image, _ in found])), labels

    def _sample(self, number: int, place: int) -> tuple[Any, int]:
        """(pixels (C, H, W), class) of a sample."""
        where = f"{self.shards[number].place}: sample {place}"
        row = self._row(number, place)
        self.prefetch.used(number)
        data, label = self._field(row, self.form.image, where), self._label(row, where)
        if isinstance(data, Mapping):  # as Hugging Face datasets write images
            data = data.get("bytes")
        if not isinstance(data, bytes):
            raise DataError(f"{where}: {self.form.image!r} is not an encoded image (data.image)")
        return decode(data, where, self.form.shape[0], self.form.shape[1:]), label

    def _label(self, row: Mapping[str, Any], where: str) -> int:
        """The class of a sample. Raises `DataError`."""
        label = self._field(row, self.form.label, where)
        if isinstance(label, bool) or not isinstance(label, int):
            raise DataError(f"{where}: {self.form.label!r} is not a number (data.label)")
        if not 0 <= label < self.form.classes:
            raise DataError(
                f"{where}: label {label}, and the classes are 0 to {self.form.classes - 1}"
                " (data.classes)"
            )
        return label

    def _field(self, row: Mapping[str, Any], name: str, where: str) -> Any:
        try:
            return lookup(row, name)
        except KeyError:
            raise DataError(
                f"{where}: no field {name!r}; it has {', '.join(row)}; name it with data.image or"
                " data.label"
            ) from None

    def _row(self, number: int, place: int) -> Mapping[str, Any]:
        """A sample's fields; the places of samples are kept of as many shards as are mixed."""
        shard = self.shards[number]
        with shard.held(self.cache) as path:
            if number not in self.opened:
                while len(self.opened) > self.mixed:
                    del self.opened[next(iter(self.opened))]
                self.opened[number] = self._records(shard, path)
            try:
                return self.opened[number].sample(place)
            except IndexError:
                raise DataError(
                    f"{shard.place}: fewer samples than its index says; write it anew"
                ) from None
