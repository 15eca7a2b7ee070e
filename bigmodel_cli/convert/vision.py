"""What families of vision share: images in config.json and beside it, the parts of a ViT."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CLASSIFICATION, Family, Model, class_names
from bigmodel_cli.convert.folder import read_json
from bigmodel_cli.convert.rules import Rule, rows
from bigmodel_cli.data.image.images import NormalizeOptions
from bigmodel_cli.errors import CheckpointError

PROCESSOR = "preprocessor_config.json"
NO_HEAD = ("no head",)
"""The classes of a network that comes without a head: a new one is needed for any data."""


class VisionFamily(Family):
    """A family that reads images of the size in its config.json."""

    without_head: ClassVar = CLASSIFICATION

    def info(self, config: Config, folder: Path, model: Model, task: str) -> DatasetInfo:
        channels = config.get("num_channels", int, 3)
        height, width = sides(config, "image_size", 224)
        mean, std = normalisation_in(folder, channels)
        info = DatasetInfo(
            image_shape=(channels, height, width),
            mean=mean,
            std=std,
            classes=class_names(config) if task else NO_HEAD,
        )
        for note in image_notes(folder, info):
            config.note(note)
        return info

    def data(self, folder: Path, info: DatasetInfo) -> dict[str, Any]:
        return image_data(folder, info)

    def more_files(self, model: Model, info: DatasetInfo) -> dict[str, dict[str, Any]]:
        return {PROCESSOR: processor(info)}


def image_data(place: Path, info: DatasetInfo) -> dict[str, Any]:
    """The `data` section for images as `info` describes them."""
    assert info.image_shape is not None
    channels, height, width = info.image_shape
    normalize = {"mean": list(info.mean), "std": list(info.std)} if info.mean else "none"
    return {
        "type": "image_folder",
        "root": str(place),
        "channels": channels,
        **({"size": height} if height == width else {}),
        "normalize": normalize,
    }


def image_notes(folder: Path, info: DatasetInfo) -> Iterator[str]:
    """What is to be known of how images become inputs."""
    assert info.image_shape is not None
    height, width = info.image_shape[1:]
    values = read_json(folder / PROCESSOR) if os.path.lexists(folder / PROCESSOR) else None
    if values is None:
        yield (
            f"{folder}: no {PROCESSOR}; the pixels are taken in 0..1 without a normalisation"
            " (data.normalize gives one)"
        )
        return
    yield normalised(info)
    wanted = values.get("crop_size") if values.get("do_center_crop") else values.get("size")
    if isinstance(wanted, dict):
        wanted = [wanted.get("height"), wanted.get("width")]
    if isinstance(wanted, int):
        wanted = [wanted, wanted]
    if wanted and wanted != [height, width] and None not in wanted:
        yield (
            f"{PROCESSOR} makes images of {wanted[0]} x {wanted[1]}, and the weights have positions"
            f" for {height} x {width}, which is taken (data.size: {wanted[0]} when finetuning"
            " interpolates them)"
        )
    if values.get("do_center_crop"):
        yield f"{PROCESSOR} cuts out the middle of an image; here the whole image is resized"


def normalised(info: DatasetInfo) -> str:
    """A sentence about the normalisation that the weights were trained with."""
    if not info.mean:
        return "normalisation: none, as the weights were trained"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (info.mean, info.std))
    return f"normalisation: mean {mean}; deviation {std}, as the weights were trained"


def normalisation_in(folder: Path, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by preprocessor_config.json; () twice without. Raises `CheckpointError`.

    They are of pixels in 0..1: another factor is an error.
    """
    path = folder / PROCESSOR
    if not os.path.lexists(path):
        return (), ()
    values = read_json(path)
    factor = values.get("rescale_factor", 1 / 255)
    if not values.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise CheckpointError(f"{path}: rescale_factor: only pixels scaled to 0..1 are built")
    if not values.get("do_normalize", True):
        return (), ()
    return moments(values.get("image_mean"), values.get("image_std"), channels, path)


def moments(
    mean: Any, std: Any, channels: int, path: Path
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The two lists as numbers, one for each channel. Raises `CheckpointError`."""
    try:
        read = NormalizeOptions.model_validate({"mean": list(mean), "std": list(std)})
    except (TypeError, ValueError):
        read = None
    if read is None or not len(read.mean) == len(read.std) == channels:
        raise CheckpointError(
            f"{path}: mean and deviation of the images: not {channels} numbers each"
        )
    return tuple(read.mean), tuple(read.std)


def processor(info: DatasetInfo) -> dict[str, Any]:
    """preprocessor_config.json of images as ours are: resized (bilinear), scaled to 0..1."""
    assert info.image_shape is not None
    _, height, width = info.image_shape
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": bool(info.mean),
        **({"image_mean": list(info.mean), "image_std": list(info.std)} if info.mean else {}),
    }


def sides(config: Config, key: str, default: int) -> tuple[int, int]:
    """Height and width, given as one number or two. Raises `CheckpointError`."""
    config.asked.add(key)
    value = config.values.get(key)
    found = [default] if value is None else value if isinstance(value, list) else [value]
    if not all(type(side) is int and side > 0 for side in found) or len(found) not in (1, 2):
        raise CheckpointError(f"{config.file}: {key}: {str(value)[:60]!r} is not one or two sides")
    return found[0], found[-1]


def square(config: Config, key: str, default: int) -> int:
    """The side of a square. Raises `CheckpointError` for a height that is not the width."""
    height, width = sides(config, key, default)
    if height != width:
        raise CheckpointError(f"{config.file}: {key}: {height} x {width}; only squares are built")
    return height


def labels(classes: Sequence[str]) -> dict[str, Any]:
    """The keys of config.json that name the classes."""
    return {
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }


def image_size(info: DatasetInfo) -> int | list[int]:
    """The side of images, or height and width."""
    assert info.image_shape is not None
    _, height, width = info.image_shape
    return height if height == width else [height, width]


def linear(theirs: str, ours: str) -> Iterator[Rule]:
    """The weight and bias of a layer."""
    for kind in ("weight", "bias"):
        yield Rule(f"{theirs}.{kind}", f"{ours}.{kind}")


def separate(theirs: Sequence[str], ours: str, dim: int) -> Iterator[Rule]:
    """Queries, keys and values of `dim` rows each, which ours holds below one another."""
    for i, name in enumerate(theirs):
        for kind in ("weight", "bias"):
            yield Rule(f"{name}.{kind}", f"{ours}.{kind}", rows(i * dim, dim))
