"""Images in folders: which folders are splits, which are classes, and their content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bigmodel_cli.console import say
from bigmodel_cli.data.files import folders_in, passed_over, walk
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
    for name, found_classes in inside.items():
        flat = not found_classes and folders[name] != root and _images_in(folders[name], ENDINGS)
        if flat and (any(inside.values()) or "train" not in folders):
            raise DataError(
                f"{folders[name]}: its images are not in folders of classes, and those of a split"
                " are (class/image.png); sort them into such folders, or take it out of the root"
                " (bigmodel predict labels images without)"
            )
    classes = tuple(sorted({c for found in inside.values() for c in found}))
    if labelled and not classes:
        raise DataError(
            f"{root}: no folders of classes in it; the layout is root/class/image.png, or set"
            " data.labels: false for images without labels"
            + (
                ""
                if root in folders.values()
                else f"; where its folders are classes, put them into {root / 'train'}"
            )
        )
    beside = (
        [root, *folders.values()] if labelled else [root] if root not in folders.values() else []
    )
    _say_left_out(
        [image for folder in dict.fromkeys(beside) for image in _images_in(folder, ENDINGS)]
    )
    splits = {}
    others: list[Path] = []
    bare: list[Path] = []
    for name, folder in folders.items():
        own = inside.get(name, {})
        found = [(classes.index(c), walk(own[c])) for c in classes if c in own] if labelled else []
        found = found or [(-1, walk(folder))]
        bare += [
            path
            for _, inside_class in found
            for path in inside_class
            if not path.suffix and begins_as_image(path)
        ]
        found = [
            (label, [p for p in paths if p.name.lower().endswith(ENDINGS + OTHER_ENDINGS)])
            for label, paths in found
        ]
        others += [
            path
            for _, inside_class in found
            for path in inside_class
            if path.suffix.lower() not in ENDINGS
        ]
        found = [
            (label, [p for p in inside_class if p.suffix.lower() in ENDINGS])
            for label, inside_class in found
        ]
        paths = [path for _, inside_class in found for path in inside_class]
        labels = [label for label, inside_class in found for _ in inside_class]
        hashes = content_hashes(paths)
        start = len(str(folder)) + 1 if str(folder) != "." else 0
        named = [classes[label] if labelled else "" for label in labels]
        listing = [
            [str(p)[start:], label, sha] for p, label, sha in zip(paths, named, hashes, strict=True)
        ]
        digest = hashlib.sha256(json.dumps([name, listing]).encode()).hexdigest()
        names = [str(p) for p in paths]
        splits[name] = RawSplit(
            np.asarray(labels, np.int64), digest, encoded=paths, names=names, hashes=hashes
        )
    if others:
        say(left_out(others))
    if bare:
        say(
            f"warning: {len(bare):,} image(s) are left out, since their names have no ending, the"
            f" first: {bare[0]}; name them .png or as they are"
        )
    return RawImages(splits, classes)


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
    classes = [folder for folder in splits if _images_in(folder, ENDINGS)]
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


def _images_in(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The images directly in a folder."""
    try:
        found = [
            p
            for p in folder.iterdir()
            if p.suffix.lower() in endings and not passed_over(p.name) and os.path.isfile(p)
        ]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from None
    return sorted(found)


def _say_left_out(images: list[Path]) -> None:
    if images:
        say(
            f"warning: {len(images):,} image(s) beside the folders of classes are left out, the"
            f" first: {images[0]}"
        )


def _listed(folders: Iterable[Path]) -> str:
    names = [folder.name for folder in folders]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
