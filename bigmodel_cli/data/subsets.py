"""Subsets of images: a held-out part, a part of the labels, and their numbers.

The same for every seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bigmodel_cli.data.base import Say, numbers_of
from bigmodel_cli.data.holdout import fraction_of, not_both, parts_of
from bigmodel_cli.data.image.sources import Labels, RawImages, RawSplit
from bigmodel_cli.data.order import Ints, permute
from bigmodel_cli.data.targets import sets_among
from bigmodel_cli.errors import SpecError


def part_to_hold_out(given: float | None, named: tuple[str, ...]) -> float:
    """The part of the training images to hold out.

    Raises `SpecError` where it is given although there is a validation split.
    """
    try:
        not_both("val" in named, "a validation split (there is one)", given)
    except ValueError as error:
        raise SpecError(f"data.val_fraction: {error}") from None
    return fraction_of(given, "val" in named)


def divided(raw: RawImages, fraction: float, say: Say, quiet: bool) -> dict[str, RawSplit]:
    """The splits, with the held-out part."""
    splits = dict(raw.splits)
    if "train" in splits:
        train = splits["train"]
        parts = parts_of(len(train.labels), fraction, "images", None if quiet else say)
        splits |= {n: subset(train, p) for n, p in parts.items()}
    return splits


def numbers_among(labels: Labels, classes: tuple[str, ...], known: tuple[str, ...]) -> Labels:
    """(N,) labels, or (N, C) sets, by the numbers of a checkpoint's classes.

    Raises `SpecError` for one that it does not know.
    """
    if not classes:
        return labels
    if labels.ndim > 1:
        held: Labels = sets_among(labels, classes, known)
        return held
    numbers: Labels = numbers_of(classes, known, [classes[i] for i in np.unique(labels).tolist()])[
        labels
    ]
    return numbers


def part_of_each_class(labels: Labels, fraction: float) -> Ints:
    """The numbers of that part of each class's items, at least one, in order: a smaller part is
    contained in a larger one.

    Of numbers and sets, a part of all items.
    """
    chosen, labels = [], labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        order = permute(np.arange(len(own)), len(own), (1, int(label)))
        chosen.append(own[order[: max(1, round(fraction * len(own)))]])
    return np.sort(np.concatenate(chosen))


def subset(raw: RawSplit, chosen: Any) -> RawSplit:
    """Only those items."""

    def pick(items: list[Any]) -> list[Any]:
        return [items[i] for i in chosen] if items else []

    pixels = raw.pixels[chosen] if raw.pixels is not None else None
    headers = raw.headers.part(chosen) if raw.headers is not None else None
    return RawSplit(
        raw.labels[chosen],
        raw.digest,
        pixels,
        pick(raw.encoded),
        pick(raw.names),
        pick(raw.hashes),
        headers,
    )
