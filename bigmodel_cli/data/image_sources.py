"""Where images come from: each source gives arrays of pixels, or encoded images to be decoded, with labels."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.console import say
from bigmodel_cli.data.image_columns import Label, class_names, number_labels, read_images, read_labels
from bigmodel_cli.data.image_files import ENDINGS, OTHER_ENDINGS, left_out
from bigmodel_cli.data.trained_on import Hashes, as_hashes, hash_of
from bigmodel_cli.errors import DataError

Labels = np.ndarray[Any, np.dtype[np.int64]]
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass
class RawSplit:
    """`labels` (N,), -1 where there are none; `pixels` (N, C, H, W) uint8, or `encoded` images (paths or bytes) with names.

    `digest` names the content of the source from which it was read. `headers` (image_survey.Headers) are what a survey found out
    about the encoded ones.
    """

    labels: Labels
    digest: str
    pixels: Any = None
    encoded: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    headers: Any = None

    def items(self) -> Hashes:
        """(N,) the hash of each image as it was read: of its pixels, or of the encoded file."""
        if self.pixels is not None:
            return as_hashes(hash_of(image.tobytes()) for image in self.pixels)
        return as_hashes(hash_of(i if isinstance(i, bytes) else content_of(i)) for i in self.encoded)


@dataclass
class RawImages:
    """Splits of a source, and its classes (none: images without labels)."""

    splits: dict[str, RawSplit]
    classes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A name for the content of all splits."""
        return hashlib.sha256(repr([(n, s.digest) for n, s in self.splits.items()]).encode()).hexdigest()

    def without_labels(self) -> RawImages:
        """The images alone."""
        return RawImages({n: replace(s, labels=np.full_like(s.labels, -1)) for n, s in self.splits.items()}, ())


def content_of(path: Path) -> bytes:
    """A file's content. Raises `DataError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def read_mnist(root: Path, folder: str, download: bool, wanted: Sequence[str]) -> RawImages:
    """The idx files of MNIST or FashionMNIST below root/`folder`/raw, plain or .gz; of the splits that are `wanted`."""
    raw = root / folder / "raw"
    if download:
        _download(folder, root)
    splits = {}
    for name in wanted:
        prefix, sha = {"train": "train", "test": "t10k"}[name], hashlib.sha256()
        images = _read_idx(raw / f"{prefix}-images-idx3-ubyte", 3, sha)
        labels = _read_idx(raw / f"{prefix}-labels-idx1-ubyte", 1, sha)
        if len(images) != len(labels):
            raise DataError(
                f"{raw}: the {name} split has {len(images)} images and {len(labels)} labels; fetch it again"
            )
        splits[name] = RawSplit(labels.astype(np.int64), sha.hexdigest(), images[:, None])
    return RawImages(splits, FASHION if folder == "FashionMNIST" else tuple("0123456789"))


def _read_idx(path: Path, dimensions: int, sha: Any) -> Any:
    """An array of the idx format (LeCun): magic number, sizes as big-endian int32, bytes."""
    packed = path.with_name(path.name + ".gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path}: not there (nor {packed.name}); set data.root to the folder that holds {path.parent.parent.name}/, or "
            "data.download: true to fetch it"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{packed}: cannot be read: {error}") from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path}: not an idx file of {dimensions} dimensions; fetch it again")
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path}: {len(content) - header:,} bytes of content, and its header says {' x '.join(map(str, shape))}"
        )
    sha.update(content)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def read_cifar(root: Path, kind: str, download: bool, wanted: Sequence[str]) -> RawImages:
    """CIFAR-10 or CIFAR-100 in torchvision's layout below root; the splits that are `wanted`."""
    from torchvision import datasets

    source = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
    splits, classes = {}, ()
    for name in wanted:
        # torchvision wants the files of both splits, whichever is read
        unread: dict[str, Any] = {} if download else {"test_list" if name == "train" else "train_list": []}
        try:
            data = type(source.__name__, (source,), unread)(str(root), train=name == "train", download=download)
        except RuntimeError:
            raise DataError(
                f"{root}: no {kind} there (or damaged); set data.root, or data.download: true to fetch it"
            ) from None
        except OSError as error:
            raise DataError(
                f"{root}: {kind} cannot be downloaded: {error}; fetch it elsewhere and set data.root"
            ) from None
        pixels = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        splits[name] = RawSplit(np.asarray(data.targets, np.int64), digest, pixels)
        classes = tuple(data.classes)
    return RawImages(splits, classes)


def _download(folder: str, root: Path) -> None:
    from torchvision import datasets

    try:
        getattr(datasets, folder)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{root}: {folder} cannot be downloaded: {error}; fetch it elsewhere and set data.root"
        ) from None


def read_digits(wanted: Sequence[str]) -> RawImages:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fifth of each class is for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("data.type: digits needs scikit-learn: pip install 'bigmodel[digits]'") from None
    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = data.target.astype(np.int64)
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[::5]] = True
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    chosen = {"train": ~test, "test": test}
    splits = {n: RawSplit(labels[chosen[n]], digest, pixels[chosen[n]]) for n in wanted}
    return RawImages(splits, tuple("0123456789"))


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split below an image folder: itself where it has none for training, validation or test."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root")
    return {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()} or {"train": root}


def read_folder(root: Path, labelled: bool, wanted: Sequence[str]) -> RawImages:
    """ImageFolder's layout: root/class/image, or root/train/class/image with val/ and test/ beside it; the `wanted` splits.

    Without labels: all images below root, or below root/train, val and test.
    """
    folders = {name: folder for name, folder in split_folders(root).items() if name in wanted}
    classes = tuple(sorted({p.name for f in folders.values() for p in f.iterdir() if p.is_dir()})) if labelled else ()
    if labelled and not classes:
        raise DataError(
            f"{root}: no folders of classes in it; the layout is root/class/image.png, or set data.labels: false for images "
            "without labels"
        )
    splits = {}
    others: list[Path] = []
    for name, folder in folders.items():
        places = [folder / c for c in classes] or [folder]
        there = [p for place in places for p in sorted(place.rglob("*"))]
        paths = [p for p in there if p.suffix.lower() in ENDINGS]
        others += [p for p in there if p.suffix.lower() in OTHER_ENDINGS]
        labels = [classes.index(p.relative_to(folder).parts[0]) if labelled else -1 for p in paths]
        # names and sizes stand for the content: reading every image at every start would take minutes
        listing = [[p.relative_to(folder).as_posix(), p.stat().st_size] for p in paths]
        digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
        splits[name] = RawSplit(np.asarray(labels, np.int64), digest, encoded=paths, names=[str(p) for p in paths])
    if others:
        say(left_out(others))
    return RawImages(splits, classes)


def read_parquet(files: Mapping[str, Sequence[Path]], image: str, label: str | None) -> RawImages:
    """Parquet files with an image column as Hugging Face datasets write it ({bytes, path}) and a column of labels, or none."""
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError("data.type: parquet_images needs pyarrow: pip install 'bigmodel[parquet]'") from None
    found: dict[str, RawSplit] = {}
    labels: dict[str, list[Label]] = {}
    classes: dict[tuple[str, ...], Path] = {}  # of a schema, and the first file that has them
    columns = [image] if label is None else [image, label]
    for name, paths in files.items():
        images: list[bytes] = []
        names: list[str] = []
        labels[name] = []
        sha = hashlib.sha256()
        for path in paths:
            sha.update(json.dumps([name, hashlib.sha256(path.read_bytes()).hexdigest(), columns]).encode())
            try:
                table = pq.read_table(path, columns=columns)
            except (pyarrow.ArrowException, OSError, KeyError) as error:
                named = ", ".join(columns)
                raise DataError(f"{path}: cannot be read as Parquet with columns {named}: {error}") from None
            if not set(columns) <= set(table.column_names):
                named = " and ".join(map(repr, columns))
                raise DataError(f"{path}: no columns {named}; set data.image_column and data.label_column")
            places = [f"{path}: row {row}" for row in range(table.num_rows)]
            images += read_images(table.column(image).to_pylist(), places, image)
            names += places
            if label is not None:
                labels[name] += read_labels(table.column(label).to_pylist(), places, label)
                classes.setdefault(class_names(table.schema.metadata, label), path)
        found[name] = RawSplit(np.full(len(images), -1, np.int64), sha.hexdigest(), encoded=images, names=names)
    if label is None:
        return RawImages(found, ())
    if len(classes) > 1:
        first, other = list(classes.values())[:2]
        raise DataError(f"{other}: the names of its classes are not those of {first}; make one set of names of them")
    numbers, known = number_labels(labels, {n: s.names for n, s in found.items()}, next(iter(classes), ()))
    return RawImages({n: replace(s, labels=numbers[n]) for n, s in found.items()}, known)
