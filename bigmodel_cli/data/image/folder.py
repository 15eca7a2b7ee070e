"""Images in folders: which folders are splits, which are classes, and their content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bigmodel_cli.console import counted, say
from bigmodel_cli.data.folders import folders_in, passed_over, walk
from bigmodel_cli.data.hashes import content_hashes
from bigmodel_cli.data.image.files import ENDINGS, OTHER_ENDINGS, begins_as_image, left_out
from bigmodel_cli.data.image.sources import RawImages, RawSplit
from bigmodel_cli.errors import DataError, MissingData

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Accepted names of a split's folder, in any case."""


def read_folder(
    root: Path, labelled: bool, wanted: Sequence[str] = tuple(SPLIT_NAMES)
) -> RawImages:
    """The `wanted` splits of ImageFolder's layout: root/class/image, or root/train/class/image with
    val and test beside it.

    Without labels: all images below root, or below root/train, val and test. Raises `DataError` for
    a layout that can be read in two ways.
    """
    folders = {name: folder for name, folder in split_folders(root).items() if name in wanted}
    inside = {name: _class_folders(folder) for name, folder in folders.items()} if labelled else {}
    classes = tuple(sorted({c for found in inside.values() for c in found}))
    if labelled:
        _check_classes(root, folders, inside)
    flat = [root, *folders.values()] if labelled else [root] * (root not in folders.values())
    loose = [image for folder in dict.fromkeys(flat) for image in _images_in(folder)]
    if loose:
        say(
            f"warning: {counted(len(loose), 'image')} beside the folders of classes left out, the"
            f" first: {loose[0]}"
        )
    splits = {}
    others: list[Path] = []
    bare: list[Path] = []
    for name, folder in folders.items():
        own = inside.get(name) or {"": folder}
        found = [(label, path) for label in sorted(own) for path in walk(own[label])]
        for _, path in found:
            ending = path.suffix.lower()
            if not ending and begins_as_image(path):
                bare.append(path)
            elif ending in OTHER_ENDINGS and ending not in ENDINGS:
                others.append(path)
        splits[name] = _split(
            name, folder, [(c, p) for c, p in found if p.suffix.lower() in ENDINGS], classes
        )
    if others:
        say(left_out(others))
    if bare:
        say(
            f"warning: {counted(len(bare), 'image is', 'images are')} left out without an ending in"
            f" the name, the first: {bare[0]}; name it .png or as it is"
        )
    return RawImages(splits, classes)


def _check_classes(
    root: Path, folders: dict[str, Path], inside: dict[str, dict[str, Path]]
) -> None:
    """Raise `DataError` where there are no folders of classes, or only in some of the splits."""
    for name, folder in folders.items():
        flat = not inside[name] and folder != root and _images_in(folder)
        if flat and (any(inside.values()) or "train" not in folders):
            raise DataError(
                f"{folder}: its images are not in folders of classes, and those of a split are"
                " (class/image.png); sort them into such folders, or take it out of the root"
                " (bigmodel predict labels images without)"
            )
    if not any(inside.values()):
        where = f"; where its folders are classes, put them into {root / 'train'}"
        raise DataError(
            f"{root}: no folders of classes in it; the layout is root/class/image.png, or set"
            " data.labels: false for images without labels"
            f"{'' if root in folders.values() else where}"
        )


def _split(
    name: str, folder: Path, images: list[tuple[str, Path]], classes: tuple[str, ...]
) -> RawSplit:
    """A split of images, each with its class ('' where there are none)."""
    paths = [path for _, path in images]
    hashes = content_hashes(paths)
    start = len(str(folder)) + 1 if str(folder) != "." else 0
    listing = [[str(p)[start:], c, sha] for (c, p), sha in zip(images, hashes, strict=True)]
    digest = hashlib.sha256(json.dumps([name, listing]).encode()).hexdigest()
    number = {label: index for index, label in enumerate(classes)}
    labels = np.array([number.get(label, -1) for label, _ in images], np.int64)
    names = [str(path) for path in paths]
    return RawSplit(labels, digest, encoded=paths, names=names, hashes=hashes)


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split (`SPLIT_NAMES`); the root itself where none has a split's name.

    Raises `DataError`.
    """
    if not os.path.isdir(root):
        raise MissingData(f"{root.absolute()}: no such folder; set data.root")
    all_folders = folders_in(root)
    named = {
        split: [folder for folder in all_folders if folder.name.lower() in names]
        for split, names in SPLIT_NAMES.items()
    }
    for split, folders in named.items():
        if len(folders) > 1:
            both = " and ".join(str(folder) for folder in folders)
            raise DataError(
                f"{both}: two folders for the {split} split; join them, or take one away"
            )
    found = {split: folders[0] for split, folders in named.items() if folders}
    if not found:
        return {"train": root}
    others = [f for f in all_folders if f not in found.values() and walk(f, ENDINGS)]
    if others:
        raise DataError(_two_ways(root, list(found.values()), others))
    return found


def _two_ways(root: Path, splits: list[Path], others: list[Path]) -> str:
    """The message for folders of splits beside others with images."""
    classes = [folder for folder in splits if _images_in(folder)]
    if classes:
        return (
            f"{classes[0]}: images lie right in it, as in a class, and its name is that of a split;"
            f" where it is a class beside {_listed(others)}, put all classes into {root / 'train'}"
            f" (so {root / 'train' / classes[0].name}), or rename it"
        )
    return (
        f"{root}: folders of splits ({_listed(splits)}) beside others with images"
        f" ({_listed(others)}); take the others out of it, or, where all are classes, put them into"
        f" {root / 'train'}"
    )


def _class_folders(folder: Path) -> dict[str, Path]:
    """The classes' folders by name."""
    places: dict[str, Path] = {}
    for path in folders_in(folder):
        other = places.setdefault(os.path.realpath(path), path)
        if other != path:
            raise DataError(
                f"{path}: the same folder as {other}, which is another class; take one link away"
            )
    return {path.name: path for path in places.values()}


def _images_in(folder: Path) -> list[Path]:
    """The images directly in a folder."""
    try:
        found = [
            p
            for p in folder.iterdir()
            if p.suffix.lower() in ENDINGS and not passed_over(p.name) and os.path.isfile(p)
        ]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    return sorted(found)


def _listed(folders: Iterable[Path]) -> str:
    names = [folder.name for folder in folders]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
