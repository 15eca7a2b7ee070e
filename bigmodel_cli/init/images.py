"""A first spec for images in folders by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.data.image.folder import read_folder
from bigmodel_cli.data.image.parquet import read_parquet
from bigmodel_cli.data.image.sources import RawImages
from bigmodel_cli.data.image.survey import choose_shape, survey_images
from bigmodel_cli.errors import DataError
from bigmodel_cli.init.draft import Draft, Wanted, epochs, length, listed, section
from bigmodel_cli.init.draft import paths as spelled
from bigmodel_cli.yaml_scalars import on_one_line

LARGEST = 96
"""Largest side in pixels that a laptop trains on in minutes."""
SEEN = 100_000_000
"""Pixels behind the first layer that are seen in training: some four minutes on two cores."""
HALVED = 48
"""From a larger side on, the first layer halves the image, so that the others cost a quarter."""
CHANNELS = (32, 64, 128, 256)


def of_images(paths: Sequence[Path], files: Sequence[Path], wanted: Wanted) -> Draft:
    """A small CNN for the folders of classes."""
    root = paths[0]
    if len(paths) > 1 or not root.is_dir():
        raise DataError(
            f"--data {root}: name the one folder that holds the images, sorted by class:"
            f" {root.parent}"
        )
    raw = read_folder(root, labelled=True)
    if "train" not in raw.splits:
        raise DataError(
            f"{root}: it holds {listed(raw.splits)}, and no folder train beside it; make one"
        )
    return draft_images("image_folder", {"root": on_one_line(str(root))}, raw)


def of_parquet(splits: dict[str, list[Path]], image: str, label: str) -> Draft:
    """The same for Parquet files with a column of images and one of labels."""
    raw = read_parquet({name: tuple(files) for name, files in splits.items()}, image, label)
    columns = {"image_column": on_one_line(image), "label_column": on_one_line(label)}
    return draft_images(
        "parquet_images", {n: spelled(files) for n, files in splits.items()} | columns, raw
    )


def draft_images(kind: str, data: dict[str, str], raw: RawImages) -> Draft:
    """A small CNN for the images of a source; `data` are its own options."""
    bad = ""
    try:
        raw = survey_images(raw, False, None, say)
    except DataError as error:
        say(f"{error}: such images are left out (data.on_bad: skip)")
        raw, bad = survey_images(raw, True, None, say), "skip"
    if len(raw.classes) < 2:
        raise DataError(
            f"all images are of one class, {listed(raw.classes)}; a classification needs two or"
            " more"
        )
    headers = raw.splits["train"].headers
    own = headers.most_frequent()
    alike = bool((headers.sizes == own).all()) and own[0] == own[1] <= LARGEST
    size = None if alike else min(LARGEST, max(own))
    shape = choose_shape(raw.splits, size, None, None, None, say)
    count, side = len(raw.splits["train"].labels), min(shape[1:])
    stages = max(1, min(len(CHANNELS), (side // 4).bit_length()))
    halved = side > HALVED
    mirrored = shape[0] == 3
    options = {
        **data,
        "size": (
            ""
            if size is None
            else f"{size}                  # pixels of a side; more show more, and take longer"
        ),
        "on_bad": bad,
    }
    notes: tuple[str, ...] = (
        (
            f"{count:,} training images of {len(raw.classes)} classes: {listed(raw.classes)}; "
            f"splits: {listed(f'{n} {len(s.labels):,}' for n, s in raw.splits.items())}"
        ),
        (
            f"read as {'colour' if mirrored else 'grey'} of {shape[1]} x {shape[2]}; {stages}"
            " stages of a CNN"
        ),
    )
    if mirrored:
        notes += (
            "photos are mirrored at random too: take RandomHorizontalFlip out where that changes"
            " the class",
        )
    passes = epochs(count * shape[1] * shape[2] / (4 if halved else 1), SEEN)
    values = {
        "classes": str(len(raw.classes)),
        "layers": _layers(stages, halved),
        "mirror": "" if mirrored else "# ",
        "type": kind,
        "data": section(options),
        "padding": str(max(1, side // 10)),
        **length(count, passes, 64, 100),
    }
    use = raw.splits["train"].encoded[0]
    return Draft("images", values, notes, str(use) if isinstance(use, Path) else "IMAGE.png")


def _layers(stages: int, halved: bool) -> str:
    """The stages of the CNN, as lines of the spec: two convolutions each, one in the first and the
    last, which cost the most.
    """
    conv = "    - {{type: conv, channels: {}, kernel: 3, padding: {}, norm: batch}}"
    lines = []
    for stage, channels in enumerate(CHANNELS[:stages]):
        lines += [conv.format(channels, "1, stride: 2" if halved and not stage else "same")]
        lines += [conv.format(channels, "same")] if 0 < stage < len(CHANNELS) - 1 else []
        if stage < stages - 1:
            lines += ["    - {type: pool, kind: max, kernel: 2}"]
    return "\n".join(lines)
