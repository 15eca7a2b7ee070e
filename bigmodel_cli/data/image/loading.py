"""Opening a source of images: read, surveyed, divided, decoded, and measured."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.base import Assets, DataSet, Say, Split, info_of
from bigmodel_cli.data.cache import cached_folder
from bigmodel_cli.data.classes import classes_in, count_classes, say_lacking
from bigmodel_cli.data.hashes import check_unchanged
from bigmodel_cli.data.holdout import part_of_each_class, parts_of
from bigmodel_cli.data.image.augment import Augmentation
from bigmodel_cli.data.image.pixels import decode, to_array
from bigmodel_cli.data.image.sources import RawImages, RawSplit
from bigmodel_cli.data.image.split import ImageSplit, Resident, Streamed
from bigmodel_cli.data.image.survey import Shape, choose_shape, survey_images
from bigmodel_cli.data.normalisation import Moments, normalisation
from bigmodel_cli.data.targets import check_kind, number_facts, numbers_among
from bigmodel_cli.data.text.table_survey import alike_labels
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.progress import progress

RESIDENT_BYTES = 2 << 30
FORMAT = 3  # of the cached pixels
SAMPLED = 10_000  # images from which the mean and deviation of a large set are computed


def open_images(
    options: Any, base: Path, say: Say, assets: Assets | None, only: str | None
) -> DataSet:
    """The images of a source as splits; a checkpoint's normalisation is used when `assets` has
    one.
    """
    before = info_of(assets)
    known = before if only is not None else None
    white = options.white_level
    if white is None and known is not None:
        white = known.white_level
    raw, fraction = _read(options, base, white, say, only)
    parts = dict(raw.splits)
    if "train" in parts:
        chosen = parts_of(len(parts["train"].labels), fraction, "images", None if only else say)
        parts |= {n: parts["train"].part(numbers) for n, numbers in chosen.items()}
    classes = known.classes if known is not None and raw.classes else raw.classes
    opened = {n: s for n, s in parts.items() if only in (None, n)}
    theirs = known.image_shape if known else None
    shape = choose_shape(opened, options.size, options.channels, white, theirs, say)
    loaded = {}
    for name, split in opened.items():
        if known is not None:
            split = replace(split, labels=numbers_among(split.labels, raw.classes, classes))
        key = f"{split.digest}-{name}-{fraction}"
        loaded[name] = _load(split, shape, white, f"{key}-{shape}-{white}-{options.on_bad}", say)
    content = [raw.digest, shape, white, fraction, options.on_bad]
    first = next(iter(loaded.values()))
    # Of all images, however few of their labels are used.
    mean, std = (known.mean, known.std) if known else _normalisation(options, first, assets)
    if options.label_fraction < 1 and "train" in parts:
        content.append(options.label_fraction)
        some = part_of_each_class(parts["train"].labels, options.label_fraction)
        parts["train"] = parts["train"].part(some)
        if "train" in loaded:
            loaded["train"] = loaded["train"].part(some)
    train = loaded["train"].labels.numpy() if "train" in loaded else np.zeros(0, np.int64)
    info = DatasetInfo(
        image_shape=shape,
        mean=mean,
        std=std,
        classes=classes,
        class_counts=count_classes(train, classes) if "train" in loaded else (),
        white_level=white,
        label_sets=raw.sets,
        items=len(train) if raw.sets else 0,
        **number_facts(raw.targets, train, before, known is not None, say),
    )
    check_kind(info, known)
    change = Augmentation(options.augment)
    splits: dict[str, Split] = {n: ImageSplit(s, info, change) for n, s in loaded.items()}
    if options.augment and only is None:
        # A transform that does not fit is an error before anything is trained.
        splits["train"].batch(np.zeros(1, np.int64), 0, 0, True)
    key = hashlib.sha256(repr(tuple(content)).encode()).hexdigest()
    items = {n: s.items for n, s in parts.items()}
    return DataSet(info, key, splits, {}, items, "images", fraction > 0)


def _read(
    options: Any, base: Path, white: float | None, say: Say, only: str | None
) -> tuple[RawImages, float]:
    """The images with their headers, and the part of the training images to hold out."""
    named = options.named(base)
    if "train" not in named and only is None:
        raise DataError(
            f"{base / options.root}: it holds {', '.join(named)}, and no folder train (or training)"
            " beside it; make one, or, where these are classes, put them into"
            f" {base / options.root / 'train'}"
        )
    fraction = options.fraction(base)
    raw = options.read(base, only, say)
    if not options.labels:
        raw = raw.without_labels()
    raw = survey_images(raw, options.on_bad == "skip", white, say)
    _check(raw, say)
    for note in alike_labels(raw.classes) if only is None else ():
        say(note)
    return raw, fraction


def _check(raw: RawImages, say: Say) -> None:
    """Raise `DataError` for an empty split or a label that is not a class; report missing classes
    of a split.
    """
    for name, split in raw.splits.items():
        if not len(split.labels):
            raise DataError(f"the {name} split has no images; check data.root and its files")
        if not raw.classes:
            continue
        outside = np.flatnonzero((split.labels < 0) | (split.labels >= len(raw.classes)))
        if len(outside) and not raw.sets:
            place = (
                split.names[outside[0]] if split.names else f"item {outside[0]} of the {name} split"
            )
            raise DataError(
                f"{place}: label {split.labels[outside[0]]}, and the classes are 0 to"
                f" {len(raw.classes) - 1}"
            )
        say_lacking(name, "image", classes_in(split.labels), raw.classes, say)


def _load(
    raw: RawSplit, shape: Shape, white: float | None, key: str, say: Say
) -> Resident | Streamed:
    """The pixels in memory where they fit; decoded once, and cached."""
    channels, size = shape[0], shape[1:]
    if raw.pixels is not None:
        pixels = raw.pixels
        if shape != pixels.shape[1:]:
            before, after = (" x ".join(map(str, sizes)) for sizes in (pixels.shape[1:], shape))
            say(f"images of {before} (channels, height, width) are converted to {after}")
            from PIL import Image

            frames = (
                Image.fromarray(p[0] if len(p) == 1 else p.transpose(1, 2, 0)) for p in pixels
            )
            pixels = np.stack([to_array(frame, channels, size) for frame in frames])
        return Resident(pixels, raw.labels)
    total = len(raw.labels) * int(np.prod(shape))
    if total > RESIDENT_BYTES:
        return Streamed(raw, shape, white)
    name = hashlib.sha256(f"{FORMAT}-{key}".encode()).hexdigest()

    def build(draft: Path) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(raw.labels), *shape)}
        # Written and not mapped: a full disk would end the process at once (SIGBUS).
        with (
            open(draft / "pixels.npy", "wb") as file,
            progress("decoding", len(raw.labels), "images") as shown,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for source, label in zip(raw.encoded, raw.names, strict=True):
                file.write(
                    np.ascontiguousarray(decode(source, label, channels, size, white)).tobytes()
                )
                shown.add(1)
        if raw.hashes:
            check_unchanged(raw.encoded, raw.hashes)

    folder = cached_folder("images", name, f"decoding {len(raw.labels):,} images", say, build)
    return Resident(np.load(folder / "pixels.npy"), raw.labels)


def _normalisation(options: Any, train: Resident | Streamed, assets: Assets | None) -> Moments:
    """(mean, std): those given, else the checkpoint's, else those of the training split.

    A checkpoint that reads images of as many channels as they are goes on to.
    """
    channels, given, before = train.shape[0], options.normalize, info_of(assets)
    if given not in ("auto", "none"):
        if len(given.mean) != channels or len(given.std) != channels:
            raise DataError(
                f"data.normalize: give {channels} mean and std values, one for each channel"
            )
        return tuple(given.mean), tuple(given.std)
    alike = before if before is not None and _channels(before) == channels else None
    return normalisation(given == "auto", alike, lambda: moments(train.some(SAMPLED)))


def _channels(info: DatasetInfo) -> int:
    """Of the images that a checkpoint reads; 0 where it reads none."""
    return info.image_shape[0] if info.image_shape is not None and info.sound is None else 0


def moments(pixels: Tensor) -> list[tuple[float, float]]:
    """(mean, variance) of each channel, from counts of the 256 values: exact, and without a float
    copy of the images.
    """
    moments = []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(pixels.shape[1]):
        counts = torch.bincount(pixels[:, channel].flatten(), minlength=256).double()
        centre = float((counts * values).sum() / counts.sum())
        moments.append((centre, float((counts * (values - centre) ** 2).sum() / counts.sum())))
    return moments
