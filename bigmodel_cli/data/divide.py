"""A part of the images, and a part of the labels. The same for every seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bigmodel_cli.data.image_sources import Labels, RawSplit
from bigmodel_cli.data.order import Ints, permute


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
    return RawSplit(raw.labels[chosen], raw.digest, pixels, pick(raw.encoded), pick(raw.names))
