"""Images, labelled or not: one tensor on the device where they fit, else decoded on the fly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Options, Positive
from bigmodel_cli.data.base import Assets, DataSet, Say
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
from bigmodel_cli.data.image.augment import AugmentOptions
from bigmodel_cli.data.image.folder import read_folder, split_folders
from bigmodel_cli.data.image.loading import open_images
from bigmodel_cli.data.image.parquet import read_parquet
from bigmodel_cli.data.image.sources import RawImages, read_cifar, read_digits, read_mnist
from bigmodel_cli.data.targets import Separator
from bigmodel_cli.errors import DataError, SpecError

PARQUET = (".parquet",)
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
        return open_images(self, base, say, assets, only)

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

    def fraction(self, base: Path) -> float:
        """The part of the training images to hold out.

        Raises `SpecError` where it is given although there is a validation split.
        """
        if self.val_fraction and "val" in self.named(base):
            raise SpecError(
                "data.val_fraction: give either a validation split (there is one) or val_fraction,"
                " not both"
            )
        return super().fraction(base)

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
