"""Images, labelled or not: one tensor on the device where they fit, decoded on the way where they do not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import Facts, Options, Positive
from bigmodel_cli.data.augment import Augmentation, AugmentOptions
from bigmodel_cli.data.base import DataSet, Say, Split
from bigmodel_cli.data.cache import build_once, cache_directory
from bigmodel_cli.data.divide import part_of_each_class, subset, with_validation
from bigmodel_cli.data.files import expand, find_files
from bigmodel_cli.data.image_folder import read_folder
from bigmodel_cli.data.image_sources import (
    RawImages,
    RawSplit,
    read_cifar,
    read_digits,
    read_mnist,
    read_parquet,
)
from bigmodel_cli.data.image_split import ImageSplit, Resident, Streamed
from bigmodel_cli.data.order import permute
from bigmodel_cli.data.pixels import decode, to_array
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import torch

RESIDENT_BYTES = 2 << 30
FORMAT = 2  # of the cached pixels
PARQUET = (".parquet",)
SAMPLED = 10_000  # images from which the mean and deviation of a large set are computed


class NormalizeOptions(Options):
    """Mean and standard deviation per channel, of pixels scaled to 0..1."""

    mean: Annotated[list[Annotated[float, Field(ge=-10, le=10)]], Field(min_length=1, max_length=3)]
    std: Annotated[list[Positive], Field(min_length=1, max_length=3)]


class _ImageOptions(Options):
    size: Annotated[int, Field(gt=0, le=10_000)] | None = Field(
        None, description="resize to a square of so many pixels"
    )
    channels: Literal[1, 3] | None = Field(None, description="1: grey, 3: colour; the source's own when left out")
    normalize: Literal["auto", "none"] | NormalizeOptions = Field("auto", description="auto: from the training split")
    augment: list[AugmentOptions] = Field([], description="random changes while training, in order")
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="part of the training split kept for validation; 0: validate on the test split where there is no val",
    )
    workers: Annotated[int, Field(ge=0, le=256)] = Field(0, description="processes that load and augment")
    on_bad: Literal["error", "skip"] = Field("error", description="what to do with an image that cannot be decoded")
    labels: bool = Field(True, description="false: the images alone, for task.type: masked_image")
    label_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="part of each class of the training split that is kept: the same images for every seed"
    )

    @model_validator(mode="after")
    def _labels_to_keep(self) -> _ImageOptions:
        if self.label_fraction < 1 and not self.labels:
            raise ValueError("label_fraction says how many labels are kept, and with labels: false there are none")
        return self


class _RootOptions(_ImageOptions):
    root: str = Field("data", description="the folder in torchvision's layout")
    download: bool = Field(False, description="fetch the data where it is not there")


class MNISTOptions(_RootOptions):
    """MNIST: 60,000 + 10,000 handwritten digits of 28 x 28."""

    type: Literal["mnist"] = "mnist"

    def read(self, base: Path) -> RawImages:
        """Read the source."""
        return read_mnist(expand(self.root, base, "data.root"), "MNIST", self.download)


class FashionMNISTOptions(_RootOptions):
    """FashionMNIST: 60,000 + 10,000 articles of clothing of 28 x 28."""

    type: Literal["fashion_mnist"] = "fashion_mnist"

    def read(self, base: Path) -> RawImages:
        """Read the source."""
        return read_mnist(expand(self.root, base, "data.root"), "FashionMNIST", self.download)


class CIFAR10Options(_RootOptions):
    """CIFAR-10: 50,000 + 10,000 colour photos of 32 x 32."""

    type: Literal["cifar10"] = "cifar10"

    def read(self, base: Path) -> RawImages:
        """Read the source."""
        return read_cifar(expand(self.root, base, "data.root"), "cifar10", self.download)


class CIFAR100Options(_RootOptions):
    """CIFAR-100: 50,000 + 10,000 colour photos of 32 x 32 in 100 classes."""

    type: Literal["cifar100"] = "cifar100"

    def read(self, base: Path) -> RawImages:
        """Read the source."""
        return read_cifar(expand(self.root, base, "data.root"), "cifar100", self.download)


class DigitsOptions(_ImageOptions):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 (pip install 'bigmodel[digits]')."""

    type: Literal["digits"] = "digits"

    def read(self, base: Path) -> RawImages:
        """Read the source."""
        return read_digits()


class FolderOptions(_ImageOptions):
    """Folders of images: root/class/image.png, or root/train/class/image.png with val and test beside it.

    Splits may also be called training, valid, validation, dev and testing, in any case. With `labels: false` all images below
    them, at any depth.
    """

    type: Literal["image_folder"] = "image_folder"
    root: str = Field(description="the folder")

    def read(self, base: Path) -> RawImages:
        """Read the source."""
        return read_folder(expand(self.root, base, "data.root"), self.labels)


class ParquetOptions(_ImageOptions):
    """Parquet files with the image column of Hugging Face datasets (pip install 'bigmodel[parquet]')."""

    type: Literal["parquet_images"] = "parquet_images"
    train: Annotated[list[str], Field(min_length=1)] = Field(description="files or globs of the training split")
    val: list[str] = Field([], description="files of the validation split")
    test: list[str] = Field([], description="files of the test split")
    image_column: str = Field("image", description="the column of images")
    label_column: str = Field("label", description="the column of labels")

    def read(self, base: Path) -> RawImages:
        """Read the source."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        files = {n: list(find_files(names, base, f"data.{n}", PARQUET)) for n, names in named.items() if names}
        return read_parquet(files, self.image_column, self.label_column if self.labels else None)


def open_images(options: Any, *, base: Path, seed: int, say: Say, assets: Path | None = None) -> DataSet:
    """The images of a source as splits; a checkpoint's normalisation is used when `assets` names one."""
    raw = options.read(base)
    if not options.labels:
        raw = raw.without_labels()
    _check(raw, say)
    splits = with_validation(raw.splits, options.val_fraction)
    channels = options.channels or _channels(splits["train"])
    loaded = {
        n: _load(s, options, channels, f"{raw.digest}-{n}-{options.val_fraction}", say) for n, s in splits.items()
    }
    shape = loaded["train"].shape
    mean, std = _normalisation(options, loaded["train"], assets)  # of all images, however few of their labels are used
    kept: tuple[float, ...] = ()
    if options.label_fraction < 1:
        kept = (options.label_fraction,)
        train = loaded["train"]
        loaded["train"] = train.part(part_of_each_class(train.labels.numpy(), options.label_fraction))
    facts = Facts(image_shape=shape, mean=mean, std=std, classes=raw.classes)
    augmentation = Augmentation(options.augment)
    named: dict[str, Split] = {n: ImageSplit(source, facts, augmentation) for n, source in loaded.items()}
    if "val" not in named and "test" in named:
        named["val"] = named["test"]
    content = (raw.digest, shape, options.val_fraction, options.on_bad, *kept)
    key = hashlib.sha256(repr(content).encode()).hexdigest()
    return DataSet(facts, key, named, {})


def _check(raw: RawImages, say: Say) -> None:
    """Raise `DataError` for an empty split or a label that is no class; say which classes a split lacks."""
    for name, split in raw.splits.items():
        if not len(split.labels):
            raise DataError(f"the {name} split has no images; check data.root and its files")
        if not raw.classes:
            continue
        outside = np.flatnonzero((split.labels < 0) | (split.labels >= len(raw.classes)))
        if len(outside):
            place = split.names[outside[0]] if split.names else f"item {outside[0]} of the {name} split"
            raise DataError(
                f"{place}: label {split.labels[outside[0]]}, and the classes are 0 to {len(raw.classes) - 1}"
            )
        missing = sorted(set(range(len(raw.classes))) - set(np.unique(split.labels).tolist()))
        if missing:
            shown = ", ".join(raw.classes[i] for i in missing[:5])
            say(f"warning: the {name} split has no image of {len(missing)} class(es): {shown}")


def _channels(raw: RawSplit) -> int:
    """1 for a source of grey images, else 3."""
    if raw.pixels is not None:
        return int(raw.pixels.shape[1])
    import io

    from PIL import Image

    first = raw.encoded[0]
    try:
        with Image.open(io.BytesIO(first) if isinstance(first, bytes) else first) as image:
            return 1 if image.mode in ("1", "L", "I;16", "I", "F") else 3
    except OSError:
        return 3


def _load(raw: RawSplit, options: Any, channels: int, key: str, say: Say) -> Resident | Streamed:
    """The pixels in memory where they fit; decoded once, and kept in the cache."""
    if raw.pixels is not None:
        pixels = raw.pixels
        size = (options.size, options.size) if options.size else pixels.shape[2:]
        if channels != pixels.shape[1] or tuple(size) != pixels.shape[2:]:
            from PIL import Image

            frames = (Image.fromarray(p[0] if len(p) == 1 else p.transpose(1, 2, 0)) for p in pixels)
            pixels = np.stack([to_array(frame, channels, tuple(size)) for frame in frames])
        return Resident(pixels, raw.labels)
    if options.on_bad == "skip":
        raw = _without_bad(raw, channels, say)
    first = decode(raw.encoded[0], raw.names[0], channels, None)
    shape = (channels, options.size or first.shape[1], options.size or first.shape[2])
    total = len(raw.labels) * int(np.prod(shape))
    if total > RESIDENT_BYTES:
        return Streamed(raw, shape)
    name = hashlib.sha256(f"{FORMAT}-{key}-{shape}-{options.on_bad}".encode()).hexdigest()
    folder = cache_directory("images") / name
    if not folder.is_dir():
        say(f"decoding {len(raw.labels):,} images (once: kept in {folder.parent})")

    def build(draft: Path) -> None:
        pixels = np.lib.format.open_memmap(
            draft / "pixels.npy", mode="w+", dtype=np.uint8, shape=(len(raw.labels), *shape)
        )
        for index, (source, label) in enumerate(zip(raw.encoded, raw.names, strict=True)):
            pixels[index] = decode(source, label, channels, shape[1:])
        pixels.flush()
        raw.check_unchanged()

    build_once(folder, build)
    return Resident(np.load(folder / "pixels.npy"), raw.labels)


def _without_bad(raw: RawSplit, channels: int, say: Say) -> RawSplit:
    good, bad = [], []
    for index, (source, name) in enumerate(zip(raw.encoded, raw.names, strict=True)):
        try:
            decode(source, name, channels, None)
            good.append(index)
        except DataError as error:
            bad.append(str(error))
    if bad:
        say(f"warning: skipped {len(bad)} image(s) that cannot be decoded, the first: {bad[0]}")
    if not good:
        raise DataError(f"none of {len(bad)} images can be decoded, the first: {bad[0]}")
    return subset(raw, good)


def _normalisation(
    options: Any, train: Resident | Streamed, assets: Path | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std): the checkpoint's, those given, or those of the training split."""
    if assets is not None and (assets / "facts.json").exists():
        import json

        facts = Facts.from_json(json.loads((assets / "facts.json").read_text(encoding="utf-8")))
        if len(facts.mean) == train.shape[0]:
            return facts.mean, facts.std
    if options.normalize == "none":
        return (), ()
    if isinstance(options.normalize, NormalizeOptions):
        given = options.normalize
        if len(given.mean) != train.shape[0] or len(given.std) != train.shape[0]:
            raise DataError(f"data.normalize: give {train.shape[0]} mean and std values, one for each channel")
        return tuple(given.mean), tuple(given.std)
    if isinstance(train, Resident):
        pixels = train.pixels
    else:
        count = len(train.raw.labels)
        pixels = train.take(permute(np.arange(min(SAMPLED, count)), count, (0, 1)))[0]
    # From counts of the 256 values: exact, and no float copy of the images.
    mean, std = [], []
    for channel in range(pixels.shape[1]):
        counts = torch.bincount(pixels[:, channel].flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        centre = float((counts * values).sum() / counts.sum())
        mean.append(round(centre, 6))
        std.append(round(max(1e-3, float((counts * (values - centre) ** 2).sum() / counts.sum()) ** 0.5), 6))
    return tuple(mean), tuple(std)
