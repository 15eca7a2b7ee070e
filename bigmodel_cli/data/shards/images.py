"""`data.type: image_shards`: labelled images in shards, decoded as they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import Field

from bigmodel_cli.config import Count, DatasetInfo
from bigmodel_cli.data.base import AnyDataOptions, Assets, DataSet, Say, Split, info_of
from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.expected import Expected
from bigmodel_cli.data.holdout import needed
from bigmodel_cli.data.image.augment import Augmentation, AugmentOptions
from bigmodel_cli.data.image.loading import moments
from bigmodel_cli.data.image.pixels import decode, normalise
from bigmodel_cli.data.normalisation import normalisation
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.reading import lookup
from bigmodel_cli.data.shards.cache import DEFAULT, ShardCache
from bigmodel_cli.data.shards.near import InShards
from bigmodel_cli.data.shards.options import shard_items
from bigmodel_cli.data.shards.records import Records, Shard
from bigmodel_cli.data.shards.sources import find_shards
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch

MEASURED = 1000
"""First images of the training split from which mean and deviation are computed."""
Shape = tuple[int, int, int]
Found = TypeVar("Found")


class ImageShardsOptions(AnyDataOptions):
    """Shards of encoded images with a class number each: WebDataset (.tar), MDS, litdata, Parquet;
    in folders or at URLs, read in place.
    """

    test_data: ClassVar[str] = "data.test=[FILE]"
    paths = ("train", "val", "test")
    type: Literal["image_shards"] = "image_shards"
    train: Annotated[list[str], Field(min_length=1)] = Field(
        description="paths, globs, folders or URLs"
    )
    val: list[str] = Field([], description="those of the validation split")
    test: list[str] = Field([], description="those of the test split")
    image: str = Field("jpg", description="the field of the encoded image; a.b for b in a")
    label: str = Field("cls", description="the field of the class number, from 0 on")
    classes: Count = Field(description="how many classes there are")
    size: Annotated[int, Field(gt=0, le=10_000)] = Field(description="side in pixels to resize to")
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: colour")
    normalize: Literal["auto", "none"] = Field(
        "auto", description="auto: from the first thousand training images"
    )
    augment: list[AugmentOptions] = Field([], description="random changes while training, in order")
    mixed_shards: Count = Field(
        8, description="shards whose images are shuffled together; all of these must be at hand"
    )
    cache_bytes: Annotated[int, Field(gt=0, le=1 << 60)] = Field(
        DEFAULT, description="most bytes of fetched shards that are kept on the disk"
    )
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="processes that load and augment"
    )

    def splits(self, base: Path) -> tuple[str, ...]:
        return tuple(name for name, files in self._named().items() if files)

    def _named(self) -> dict[str, list[str]]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def loader_workers(self) -> int:
        return self.workers

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        cache, named = ShardCache(self.cache_bytes), self._named()
        found = {
            name: find_shards(named[name], base, f"data.{name}")
            for name in needed(self.splits(base), only)
        }
        shape: Shape = (self.channels, self.size, self.size)
        change = Augmentation(self.augment)
        splits = {
            name: ImageRows(shards, self, shape, change, cache, name == "train")
            for name, shards in found.items()
        }
        for name, split in splits.items():
            say(f"{name}: {len(found[name]):,} shards, {len(split):,} images")
        before = info_of(assets)
        first = next(iter(splits.values()))
        mean, std = normalisation(
            self.normalize == "auto",
            before if before is not None and before.image_shape == shape else None,
            lambda: moments(first.pixels(np.arange(min(MEASURED, len(first))))[0]),
        )
        names = tuple(map(str, range(self.classes)))
        info = DatasetInfo(image_shape=shape, mean=mean, std=std, classes=names)
        for split in splits.values():
            split.info = info
        identity = [self.image, self.label, shape, self.mixed_shards]
        content = {name: [s.identity for s in shards] for name, shards in found.items()}
        key = hashlib.sha256(json.dumps([identity, content]).encode()).hexdigest()
        items = {name: partial(shard_items, [shards]) for name, shards in found.items()}
        opened: dict[str, Split] = dict(splits)
        return DataSet(info, key, opened, {}, items, "shards", False)

    def expected(self, assets: Assets | None) -> Expected:
        shape: Shape = (self.channels, self.size, self.size)
        zeros, names = (0.0,) * self.channels, tuple(map(str, range(self.classes)))
        ones = (1.0,) * self.channels
        info = DatasetInfo(image_shape=shape, mean=zeros, std=ones, classes=names)
        return Expected(info, frozenset({"image", "label"}))


class ImageRows(InShards):
    """{"image": (B, C, H, W) float32 normalised, "label": (B,), "key": (B,)}."""

    def __init__(
        self,
        shards: Sequence[Shard],
        options: ImageShardsOptions,
        shape: Shape,
        augmentation: Augmentation,
        cache: ShardCache,
        train: bool,
    ) -> None:
        self.shards, self.options, self.shape = shards, options, shape
        self.augmentation, self.info = augmentation, DatasetInfo()
        self.opened: dict[int, Records] = {}
        counts = np.array([self._count(shard, cache) for shard in shards], np.int64)
        if not counts.any():
            raise DataError("the shards hold no image; look at data.train")
        sizes = [shard.bytes_read if shard.needs_cache else 0 for shard in shards]
        mixed = options.mixed_shards if train else None
        super().__init__(counts, sizes, partial(_fetch, shards, cache), cache, mixed)

    def _count(self, shard: Shard, cache: ShardCache) -> int:
        """How many samples a shard has; where no index says it, found once."""
        if shard.count is not None:
            return shard.count

        def count() -> int:
            return _again(lambda: len(self._records(shard, cache)))

        return int(cached_json("shard-counts", [1, shard.identity], count))

    def _records(self, shard: Shard, cache: ShardCache) -> Records:
        form = shard.form.of_fields((self.options.image, self.options.label))
        return form.open(shard.path(cache), shard.place)

    def redrawn(self) -> str | None:
        changes = self.augmentation.changes
        return "data.augment changes images anew in each epoch" if changes else None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The samples, normalised, and augmented by (seed, epoch, sample) where asked."""
        pixels, labels = self.pixels(samples)
        images = pixels.float().div_(255)
        if augment:
            images = self.augmentation(images, samples, epoch, seed)
        return {"image": normalise(images, self.info), "label": labels}

    def pixels(self, samples: Ints) -> tuple[Tensor, Tensor]:
        """(pixels (B, C, H, W) uint8, labels (B,)) of those samples."""
        numbers = np.searchsorted(self.ends, samples, "right")
        before = np.concatenate((np.zeros(1, np.int64), self.ends))[numbers]
        found = [
            self._sample(number, place)
            for number, place in zip(numbers.tolist(), (samples - before).tolist(), strict=True)
        ]
        labels = torch.tensor([label for _, label in found])
        return torch.from_numpy(np.stack([image for image, _ in found])), labels

    def _sample(self, number: int, place: int) -> tuple[Any, int]:
        """(pixels (C, H, W), class) of a sample."""
        shard = self.shards[number]
        where = f"{shard.place}: sample {place}"
        row = _again(lambda: self._row(number, place))
        self.prefetch.used(number)
        data, label = (
            _field(row, name, where) for name in (self.options.image, self.options.label)
        )
        if isinstance(data, Mapping):  # as Hugging Face datasets write images
            data = data.get("bytes")
        if not isinstance(data, bytes):
            raise DataError(f"{where}: {self.options.image!r} is not an encoded image (data.image)")
        if isinstance(label, bool) or not isinstance(label, int):
            raise DataError(f"{where}: {self.options.label!r} is not a number (data.label)")
        if not 0 <= label < self.options.classes:
            raise DataError(
                f"{where}: label {label}, and the classes are 0 to {self.options.classes - 1}"
                " (data.classes)"
            )
        return decode(data, where, self.shape[0], self.shape[1:]), label

    def _row(self, number: int, place: int) -> Mapping[str, Any]:
        """A sample's fields; the places of samples are kept of as many shards as are mixed."""
        if number not in self.opened:
            while len(self.opened) > self.mixed:
                del self.opened[next(iter(self.opened))]
            self.opened[number] = self._records(self.shards[number], self.cache)
        try:
            self.shards[number].path(self.cache)  # it counts as used, or is fetched again
            return self.opened[number].sample(place)
        except IndexError:
            raise DataError(
                f"{self.shards[number].place}: fewer samples than its index says; write it anew"
            ) from None


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    try:
        return lookup(row, name)
    except KeyError:
        raise DataError(
            f"{where}: no field {name!r}; it has {', '.join(row)}; name it with data.image or"
            " data.label"
        ) from None


def _again(read: Callable[[], Found]) -> Found:
    """The result, tried again where the cache removed the file meanwhile."""
    for _ in range(100):
        try:
            return read()
        except FileNotFoundError:
            continue
    raise DataError("a shard was removed while it was read; put it back")


def _fetch(shards: Sequence[Shard], cache: ShardCache, number: int) -> object:
    return shards[number].path(cache)
