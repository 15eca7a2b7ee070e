"""Image sources: arrays of pixels, or encoded images to be decoded, with labels."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.data.files import check_plain
from bigmodel_cli.data.trained_on import Hashes, as_hashes, hash_of
from bigmodel_cli.errors import DataError, MissingData
from bigmodel_cli.packages import need

Labels = np.ndarray[Any, np.dtype[Any]]
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass
class RawSplit:
    """`labels` (N,), -1 where there are none, or the numbers or sets of targets.py.

    `pixels` are (N, C, H, W) uint8, or `encoded` images are paths or bytes, with names. `digest`
    identifies the content of the source, `hashes` are those of image files. `headers`
    (survey.Headers) are the survey of the encoded ones.
    """

    labels: Labels
    digest: str
    pixels: Any = None
    encoded: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    headers: Any = None

    def items(self) -> Hashes:
        """(N,) the hash of each image as it was read: of its pixels, or of the encoded file."""
        if self.pixels is not None:
            return as_hashes(hash_of(image.tobytes()) for image in self.pixels)
        if self.hashes:
            return as_hashes(
                int.from_bytes(bytes.fromhex(sha)[:8], "little") for sha in self.hashes
            )
        return as_hashes(hash_of(image) for image in self.encoded)

    def part(self, chosen: Any) -> RawSplit:
        """Only the items with those numbers."""

        def pick(items: list[Any]) -> list[Any]:
            return [items[i] for i in chosen] if items else []

        return RawSplit(
            self.labels[chosen],
            self.digest,
            self.pixels[chosen] if self.pixels is not None else None,
            pick(self.encoded),
            pick(self.names),
            pick(self.hashes),
            self.headers.part(chosen) if self.headers is not None else None,
        )


@dataclass
class RawImages:
    """Splits of a source, and its classes, or the names of its numbers (neither: images without
    labels).
    """

    splits: dict[str, RawSplit]
    classes: tuple[str, ...]
    targets: tuple[str, ...] = ()
    sets: bool = False

    @property
    def digest(self) -> str:
        """A hash of the content of all splits."""
        return hashlib.sha256(
            repr([(n, s.digest) for n, s in self.splits.items()]).encode()
        ).hexdigest()

    def without_labels(self) -> RawImages:
        """The images alone."""
        return RawImages(
            {
                n: replace(s, labels=np.full(len(s.labels), -1, np.int64))
                for n, s in self.splits.items()
            },
            (),
        )


def read_mnist(root: Path, folder: str, download: bool, wanted: Sequence[str]) -> RawImages:
    """The idx files of MNIST or FashionMNIST below root/`folder`/raw, plain or .gz, for the
    `wanted` splits.
    """
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
                f"{raw}: the {name} split has {len(images)} images and {len(labels)} labels; fetch"
                " it again"
            )
        splits[name] = RawSplit(labels.astype(np.int64), sha.hexdigest(), images[:, None])
    return RawImages(splits, FASHION if folder == "FashionMNIST" else tuple("0123456789"))


def _read_idx(path: Path, dimensions: int, sha: Any) -> Any:
    """An array of the idx format (LeCun): magic number, sizes as big-endian int32, bytes."""
    packed = path.with_name(path.name + ".gz")
    check_plain(path)
    check_plain(packed)
    try:
        content = (
            path.read_bytes() if os.path.exists(path) else gzip.decompress(packed.read_bytes())
        )
    except FileNotFoundError:
        raise MissingData(
            f"{path.absolute()}: not there (nor {packed.name}); set data.root to the folder that"
            f" holds {path.parent.parent.name}/, or data.download: true to fetch it"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{packed}: cannot be read: {error}") from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path}: not an idx file of {dimensions} dimensions; fetch it again")
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    if (shape < 0).any() or 0 in shape[1:]:
        raise DataError(f"{path}: its header says {' x '.join(map(str, shape))}; fetch it again")
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path}: {len(content) - header:,} bytes of content, and its header says"
            f" {' x '.join(map(str, shape))}"
        )
    sha.update(content)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def read_cifar(root: Path, kind: str, download: bool, wanted: Sequence[str]) -> RawImages:
    """CIFAR-10 or CIFAR-100 in torchvision's layout below root, for the `wanted` splits."""
    from torchvision import datasets

    source = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
    splits, classes = {}, ()
    for name in wanted:
        # torchvision wants the files of both splits, whichever is read
        unread: dict[str, Any] = (
            {} if download else {"test_list" if name == "train" else "train_list": []}
        )
        try:
            data = type(source.__name__, (source,), unread)(
                str(root), train=name == "train", download=download
            )
        except RuntimeError:
            raise MissingData(
                f"{root.absolute()}: no {kind} there (or damaged); set data.root, or data.download:"
                " true to fetch it"
            ) from None
        except OSError as error:
            raise DataError(
                f"{root}: {kind} cannot be downloaded: {error}; fetch it elsewhere and set"
                " data.root"
            ) from None
        pixels = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))
        description = pixels.tobytes() + json.dumps([data.classes, data.targets]).encode()
        splits[name] = RawSplit(
            np.asarray(data.targets, np.int64), hashlib.sha256(description).hexdigest(), pixels
        )
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
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fifth of each class is for the
    test.
    """
    data = need("sklearn.datasets", "digits", "data.type: digits").load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = data.target.astype(np.int64)
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[::5]] = True
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    chosen = {"train": ~test, "test": test}
    splits = {n: RawSplit(labels[chosen[n]], digest, pixels[chosen[n]]) for n in wanted}
    return RawImages(splits, tuple("0123456789"))
