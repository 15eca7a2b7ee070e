"""`data.type: image_shards`: labelled images in shards, decoded as they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field

from bigmodel_cli.config import Count, DatasetInfo
from bigmodel_cli.console import counted
from bigmodel_cli.data.base import Assets, DataSet, Say, Split, info_of
from bigmodel_cli.data.expected import Expected
from bigmodel_cli.data.holdout import needed
from bigmodel_cli.data.image.augment import Augmentation, AugmentOptions
from bigmodel_cli.data.image.loading import moments
from bigmodel_cli.data.normalisation import normalisation
from bigmodel_cli.data.shards.cache import ShardCache
from bigmodel_cli.data.shards.image_rows import Form, ImageRows, Shape
from bigmodel_cli.data.shards.mixture import Mixture, Pattern
from bigmodel_cli.data.shards.near import allot
from bigmodel_cli.data.shards.options import shard_items
from bigmodel_cli.data.shards.places import InShardsOptions
from bigmodel_cli.data.shards.sources import find_shards
from bigmodel_cli.lazy import torch

MEASURED = 1000
"""Images of the training split, the first ones of each source, from which mean and deviation are
computed.
"""


class ImageShardsOptions(InShardsOptions):
    """Shards of encoded images with a class number each: WebDataset (.tar), MDS, litdata, Parquet;
    in folders or at URLs, read in place.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"type": "image_shards", "train": ["shards/*.tar"], "classes": 10, "size": 32}
            ]
        }
    )

    type: Literal["image_shards"] = "image_shards"
    image: str = Field("jpg", description="the field of the encoded image; a.b for b in a")
    label: str = Field("cls", description="the field of the class number, from 0 on")
    classes: Count = Field(description="how many classes there are")
    count_classes: bool = Field(
        False,
        description=(
            "count the training images of each class, for task.class_weights: balanced and a"
            " warning where they are uneven: reads every shard once"
        ),
    )
    size: Annotated[int, Field(gt=0, le=10_000)] = Field(description="side in pixels to resize to")
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: colour")
    normalize: Literal["auto", "none"] = Field(
        "auto", description="auto: from the first thousand training images"
    )
    augment: list[AugmentOptions] = Field([], description="random changes while training, in order")

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        cache = ShardCache(self.cache_bytes)
        found = {
            name: [find_shards(names, base, option) for names, option in self.sources()[name]]
            for name in needed(self.splits(base), only)
        }
        shape: Shape = (self.channels, self.size, self.size)
        form = Form(
            *(self.image, self.label, self.classes, shape),
            *(Augmentation(self.augment), self.mixed_shards, self.count_classes),
        )
        rows = {
            name: [ImageRows(shards, form, cache, name == "train") for shards in lists]
            for name, lists in found.items()
        }
        splits = {name: self._split(name, own, cache, say) for name, own in rows.items()}
        before = info_of(assets)
        first = next(iter(rows))
        mean, std = normalisation(
            self.normalize == "auto",
            before if before is not None and before.image_shape == shape else None,
            lambda: moments(
                torch.cat(
                    [
                        own.pixels(np.arange(min(max(1, round(MEASURED * part)), len(own))))[0]
                        for own, part in zip(rows[first], self._parts(first), strict=True)
                    ]
                )
            ),
        )
        info = DatasetInfo(
            image_shape=shape,
            mean=mean,
            std=std,
            classes=tuple(map(str, range(self.classes))),
            class_counts=self._class_counts(rows["train"]) if "train" in rows else (),
        )
        for own in rows.values():
            for source in own:
                source.info = info
        identity = [self.image, self.label, shape, self.mixed_shards, self.weights()]
        content = {n: [[s.identity for s in own] for own in lists] for n, lists in found.items()}
        key = hashlib.sha256(json.dumps([identity, content]).encode()).hexdigest()
        items = {name: partial(shard_items, lists) for name, lists in found.items()}
        return DataSet(info, key, splits, {}, items, "shards", False)

    def _parts(self, name: str) -> list[float]:
        """The part that each source has of a split."""
        return Pattern(self.weights()).fractions() if name == "train" and self.mix else [1.0]

    def _split(self, name: str, rows: Sequence[ImageRows], cache: ShardCache, say: Say) -> Split:
        """The split; what it holds is said."""
        allot(rows, cache)
        parts = self._parts(name)
        for index, own in enumerate(rows):
            share = "" if len(rows) == 1 else f", {parts[index]:.2%} of all rows"
            say(
                f"{self.called(name, index, len(rows))}: {counted(len(own.shards), 'shard')},"
                f" {len(own):,} images{share}"
            )
        return rows[0] if len(rows) == 1 else Mixture(rows, Pattern(self.weights()))

    def _class_counts(self, rows: Sequence[ImageRows]) -> tuple[int, ...]:
        """How often each class comes in an epoch; () where that was not counted."""
        if not self.count_classes:
            return ()
        total = sum(map(len, rows))
        counts = sum(
            part * total / len(own) * own.class_counts
            for own, part in zip(rows, self._parts("train"), strict=True)
        )
        return tuple(int(n) for n in np.rint(counts))

    def expected(self, assets: Assets | None) -> Expected:
        shape: Shape = (self.channels, self.size, self.size)
        zeros, names = (0.0,) * self.channels, tuple(map(str, range(self.classes)))
        ones = (1.0,) * self.channels
        info = DatasetInfo(image_shape=shape, mean=zeros, std=ones, classes=names)
        return Expected(info, frozenset({"image", "label"}))
