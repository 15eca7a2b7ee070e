"""Which images go where: a validation part, and a part of the labels. The same for every seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bigmodel_cli.data.image_sources import Labels, RawSplit
from bigmodel_cli.data.order import Ints, permute
from bigmodel_cli.errors import DataError


def with_validation(splits: dict[str, RawSplit], fraction: float) -> dict[str, RawSplit]:
    """Split a validation part off the training split."""
    if not fraction:
        return splits
    train = splits["train"]
    order = permute(np.arange(len(train.labels)), len(train.labels), (0, 0))
    count = max(1, round(fraction * len(order)))
    parts = {"val": np.sort(order[:count]), "train": np.sort(order[count:])}
    if not len(parts["train"]):
        raise DataError(f"data.val_fraction: {fraction} leaves nothing of {len(order)} images to train on")
    return {**splits, **{name: subset(train, chosen) for name, chosen in parts.items()}}


def part_of_each_class(labels: Labels, fraction: float) -> Ints:
    """The numbers of so large a part of each class's items, at least one, in order: a smaller part lies within a larger one."""
    chosen = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        order = permute(np.arange(len(own)), len(own), (1, int(label)))
        chosen.append(own[order[: max(1, round(fraction * len(own)))]])
    return np.sort(np.concatenate(chosen))


def subset(raw: RawSplit, chosen: Any) -> RawSplit:
    """Those items alone."""
    pick: Callable[[list[Any]], list[Any]] = lambda items: [items[i] for i in chosen] if items else []  # noqa: E731
    pixels = raw.pixels[chosen] if raw.pixels is not None else None
    return RawSplit(raw.labels[chosen], pixels, pick(raw.encoded), pick(raw.names), pick(raw.hashes))
