"""Images, labelled or not: one tensor on the device where they fit, else decoded on the fly."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import DatasetInfo, Options, Positive
from bigmodel_cli.data.base import (
    Assets,
    DataSet,
    Say,
    Split,
    classes_in,
    count_classes,
    info_of,
    say_lacking,
)
from bigmodel_cli.data.cache import cached_folder
from bigmodel_cli.data.expected import Expected, LabelledOptions, numbered
from bigmodel_cli.data.files import expand
from bigmodel_cli.data.holdout import (
    HELD_OUT,
    FilesOptions,
    HeldOutOptions,
    ValFraction,
    fraction_of,
    needed,
)
from bigmodel_cli.data.image.augment import Augmentation, AugmentOptions
from bigmodel_cli.data.image.folder import read_folder, split_folders
from bigmodel_cli.data.image.pixels import decode, to_array
from bigmodel_cli.data.image.sources import (
    RawImages,
    RawSplit,
    read_cifar,
    read_digits,
    read_mnist,
    read_parquet,
)
from bigmodel_cli.data.image.split import ImageSplit, Resident, Streamed
from bigmodel_cli.data.image.survey import Shape, choose_shape, survey_images
from bigmodel_cli.data.normalisation import Moments, normalisation
from bigmodel_cli.data.subsets import (
    divided,
    numbers_among,
    part_of_each_class,
    part_to_hold_out,
    subset,
)
from bigmodel_cli.data.targets import Separator, check_kind, number_facts
from bigmodel_cli.data.text.table_survey import alike_labels
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.progress import progress

RESIDENT_BYTES = 2 << 30
FORMAT = 3  # of the cached pixels
PARQUET = (".parquet",)
SAMPLED = 10_000  # images from which the mean and deviation of a large set are computed


READERS = {
    "MNIST": read_mnist,
    "FashionMNIST": read_mnist,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
}
"""The reader of each folder of torchvision's layout."""


class NormalizeOptions(Options):
    """Mean and standard deviation per channel, of pixels scaled to 0..1."""

    mean: Annotated[list[Annotated[float, Field(ge=-10, le=10)]], Field(min_length=1, max_length=3)]
    std: Annotated[list[Positive], Field(min_length=1, max_length=3)]


class _ImageOptions(HeldOutOptions):
    source: ClassVar[tuple[tuple[int, int, int] | None, int, int]] = (None, 0, 0)
    """(channels, height, width), classes and training images of a source that is the same
    everywhere.
    """
    test_data: ClassVar[str] = "data.root=FOLDER, with a folder test in it"
    size: Annotated[int, Field(gt=0, le=10_000)] | None = Field(
        None,
        description="side in pixels to resize to; left out: the size of most training images",
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1: grey, 3: colour; left out: colour if any training image has colour"
    )
    white_level: Annotated[float, Field(gt=0, le=2**32)] | None = Field(
        None,
        description=(
            "the value of white in grey images of more than 8 bits: 4095 for 12 bits kept in 16;"
            " left out: 65535, and 1 in floating-point images"
        ),
    )
    normalize: Literal["auto", "none"] | NormalizeOptions = Field(
        "auto", description="auto: from the training split"
    )
    augment: list[AugmentOptions] = Field([], description="random changes while training, in order")
    val_fraction: ValFraction = Field(None, description=HELD_OUT.format("images"))
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="processes that load and augment"
    )
    on_bad: Literal["error", "skip"] = Field(
        "error", description="what to do with an image that cannot be decoded"
    )
    labels: bool = Field(True, description="false: only the images, for task.type: masked_image")
    label_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description=(
            "part of each class of the training split that is kept: the same images for every seed"
        ),
    )

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        return _open_images(self, base, say, assets, only)

    @model_validator(mode="after")
    def _labels_to_keep(self) -> _ImageOptions:
        if self.label_fraction < 1 and not self.labels:
            raise ValueError(
                "label_fraction says how many labels are kept, and with labels: false there are"
                " none"
            )
        return self

    def named(self, base: Path) -> tuple[str, ...]:
        return ("train", "test")

    def loader_workers(self) -> int:
        return self.workers

    def expected_classes(self) -> int:
        return self.source[1]

    def expected(self, assets: Assets | None) -> Expected:
        """What is known of the source, and of the options beside it."""
        shape, _, count = self.source
        if self.size is None and shape is None:
            raise DataError(
                "the size of its images is not known: give data.size: N, the side of a square in"
                " pixels"
            )
        channels, height, width = shape or (3, 0, 0)
        channels = self.channels or channels
        image_shape = (channels, self.size or height, self.size or width)
        fraction = fraction_of(self.val_fraction, False)
        kept = count - (max(1, round(fraction * count)) if fraction else 0)
        samples = round(kept * self.label_fraction) if count else None
        info = numbered(self.expected_classes() if self.labels else 0, samples)
        info = replace(info, image_shape=image_shape, mean=(0.0,) * channels, std=(1.0,) * channels)
        return Expected(info, frozenset({"image", "label"} if self.labels else {"image"}), samples)


class _RootOptions(_ImageOptions):
    paths = ("root",)
    folder: ClassVar[str]
    root: str = Field("data", description="the folder in torchvision's layout")
    download: bool = Field(False, description="fetch the data where it is not there")

    def read(self, base: Path, only: str | None, say: Say) -> RawImages:
        """Read the source, or what one split of it needs."""
        root, wanted = expand(self.root, base, "data.root"), needed(self.named(base), only)
        return READERS[self.folder](root, self.folder, self.download, wanted)


class MNISTOptions(_RootOptions):
    """MNIST: 60,000 + 10,000 handwritten digits of 28 x 28."""

    folder, source = "MNIST", ((1, 28, 28), 10, 60_000)
    type: Literal["mnist"] = "mnist"


class FashionMNISTOptions(_RootOptions):
    """FashionMNIST: 60,000 + 10,000 articles of clothing of 28 x 28."""

    folder, source = "FashionMNIST", ((1, 28, 28), 10, 60_000)
    type: Literal["fashion_mnist"] = "fashion_mnist"


class CIFAR10Options(_RootOptions):
    """CIFAR-10: 50,000 + 10,000 colour photos of 32 x 32."""

    folder, source = "cifar10", ((3, 32, 32), 10, 50_000)
    type: Literal["cifar10"] = "cifar10"


class CIFAR100Options(_RootOptions):
    """CIFAR-100: 50,000 + 10,000 colour photos of 32 x 32 in 100 classes."""

    folder, source = "cifar100", ((3, 32, 32), 100, 50_000)
    type: Literal["cifar100"] = "cifar100"


class DigitsOptions(_ImageOptions):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 (pip install 'bigmodel[digits]')."""

    type: Literal["digits"] = "digits"

    def read(self, base: Path, only: str | None, say: Say) -> RawImages:
        return read_digits(needed(self.named(base), only))


class FolderOptions(LabelledOptions, _ImageOptions):
    """Folders of images: root/class/image.png, or root/train/class/image.png with val and test
    beside it.

    Splits may also be called training, valid, validation, dev and testing, in any case. With
    `labels: false` all images below them, at any depth.
    """

    paths = ("root",)
    type: Literal["image_folder"] = "image_folder"
    root: str = Field(description="the folder")

    def named(self, base: Path) -> tuple[str, ...]:
        """The splits that have a folder."""
        return tuple(split_folders(expand(self.root, base, "data.root")))

    def read(self, base: Path, only: str | None, say: Say) -> RawImages:
        """The images of the splits that `only` needs."""
        return read_folder(
            expand(self.root, base, "data.root"), self.labels, needed(self.named(base), only)
        )


class ParquetOptions(FilesOptions, LabelledOptions, _ImageOptions):
    """Parquet files with the image column of Hugging Face datasets (pip install
    'bigmodel[parquet]').
    """

    type: Literal["parquet_images"] = "parquet_images"
    train: Annotated[list[str], Field(min_length=1)] = Field(
        description="files or globs of the training split"
    )
    val: list[str] = Field([], description="files of the validation split")
    test: list[str] = Field([], description="files of the test split")
    image_column: str = Field("image", description="the column of images")
    label_column: str = Field("label", description="the column of labels")
    label_separator: Separator = None
    target_columns: list[str] = Field(
        [], description="columns of numbers to learn instead of labels, for task.type: regression"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ParquetOptions:
        if self.target_columns and self.label_separator is not None:
            raise ValueError(
                "target_columns and label_separator: an image has numbers or labels; leave one out"
            )
        if len(set(self.target_columns)) < len(self.target_columns):
            raise ValueError("target_columns: a column is named twice")
        return self

    def read(self, base: Path, only: str | None, say: Say) -> RawImages:
        """The images of the splits that `only` needs."""
        files = self.files(base, only, say, PARQUET)
        if not self.labels:
            return read_parquet(files, self.image_column, None)
        return read_parquet(
            files, self.image_column, self.label_column, self.label_separator, self.target_columns
        )


def _open_images(
    options: Any, base: Path, say: Say, assets: Assets | None, only: str | None
) -> DataSet:
    """The images of a source as splits; a checkpoint's normalisation is used when `assets` has
    one.
    """
    before = info_of(assets)
    known = before if only is not None else None
    named = options.named(base)
    if "train" not in named and only is None:
        raise DataError(
            f"{base / options.root}: it holds {', '.join(named)}, and no folder train (or training)"
            " beside it; make one, or, where these are classes, put them into"
            f" {base / options.root / 'train'}"
        )
    fraction = part_to_hold_out(options.val_fraction, named)
    raw = options.read(base, only, say)
    if not options.labels:
        raw = raw.without_labels()
    white = (
        options.white_level
        if options.white_level is not None or known is None
        else known.white_level
    )
    raw = survey_images(raw, options.on_bad == "skip", white, say)
    _check(raw, say)
    for note in alike_labels(raw.classes) if only is None else ():
        say(note)
    parts = divided(raw, fraction, say, only is not None)
    opened = {n: s for n, s in parts.items() if only in (None, n)}
    shape = choose_shape(
        opened, options.size, options.channels, white, known.image_shape if known else None, say
    )
    loaded = {
        n: _load(s, options, shape, white, f"{s.digest}-{n}-{fraction}", say)
        for n, s in opened.items()
    }
    first = next(iter(loaded.values()))
    # Of all images, however few of their labels are used.
    mean, std = (known.mean, known.std) if known else _normalisation(options, first, assets)
    label_part: tuple[float, ...] = ()
    if options.label_fraction < 1 and "train" in parts:
        label_part = (options.label_fraction,)
        chosen = part_of_each_class(parts["train"].labels, options.label_fraction)
        parts["train"] = subset(parts["train"], chosen)
        if "train" in loaded:
            loaded["train"] = loaded["train"].part(chosen)
    classes = known.classes if known is not None and raw.classes else raw.classes
    if known is not None:
        loaded = {
            n: source.labelled(numbers_among(source.labels.numpy(), raw.classes, classes))
            for n, source in loaded.items()
        }
    train = loaded["train"].labels.numpy() if "train" in loaded else np.zeros(0, np.int64)
    info = DatasetInfo(
        image_shape=first.shape,
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
    augmentation = Augmentation(options.augment)
    splits: dict[str, Split] = {
        n: ImageSplit(source, info, augmentation) for n, source in loaded.items()
    }
    if options.augment and only is None:
        # A transform that does not fit is an error before anything is trained.
        splits["train"].batch(np.zeros(1, np.int64), 0, 0, True)
    content = (raw.digest, first.shape, white, fraction, options.on_bad, *label_part)
    key = hashlib.sha256(repr(content).encode()).hexdigest()
    return DataSet(
        info, key, splits, {}, {n: s.items for n, s in parts.items()}, "images", fraction > 0
    )


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
    raw: RawSplit, options: Any, shape: Shape, white: float | None, key: str, say: Say
) -> Resident | Streamed:
    """The pixels in memory where they fit; decoded once, and cached."""
    channels, size = shape[0], shape[1:]
    if raw.pixels is not None:
        pixels = raw.pixels
        if shape != pixels.shape[1:]:
            before, after = (" x ".join(map(str, sizes)) for sizes in (pixels.shape[1:], shape))
            say(f"images of {before} (channels, height, width) are made {after}")
            from PIL import Image

            frames = (
                Image.fromarray(p[0] if len(p) == 1 else p.transpose(1, 2, 0)) for p in pixels
            )
            pixels = np.stack([to_array(frame, channels, size) for frame in frames])
        return Resident(pixels, raw.labels)
    total = len(raw.labels) * int(np.prod(shape))
    if total > RESIDENT_BYTES:
        return Streamed(raw, shape, white)
    name = hashlib.sha256(f"{FORMAT}-{key}-{shape}-{white}-{options.on_bad}".encode()).hexdigest()

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
        raw.check_unchanged()

    folder = cached_folder("images", name, f"decoding {len(raw.labels):,} images", say, build)
    return Resident(np.load(folder / "pixels.npy"), raw.labels)


def _normalisation(options: Any, train: Resident | Streamed, assets: Assets | None) -> Moments:
    """(mean, std): those given, else the checkpoint's, else those of the training split."""
    channels, given, before = train.shape[0], options.normalize, info_of(assets)
    if given not in ("auto", "none"):
        if len(given.mean) != channels or len(given.std) != channels:
            raise DataError(
                f"data.normalize: give {channels} mean and std values, one for each channel"
            )
        return tuple(given.mean), tuple(given.std)
    alike = before if before is not None and len(before.mean) == channels else None
    return normalisation(given == "auto", alike, lambda: _moments(train.some(SAMPLED)))


def _moments(pixels: Tensor) -> list[tuple[float, float]]:
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
