"""What families of vision share: images in config.json and beside it, the parts of a ViT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CLASSIFICATION, NO_DATA, Family, Model
from bigmodel_cli.convert.folder import has, read_json
from bigmodel_cli.convert.label_heads import facts_of_labels
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
        check_channels(channels, config, "num_channels")
        height, width = sides(config, "image_size", 224)
        mean, std = normalisation_in(folder, channels)
        info = DatasetInfo(
            image_shape=(channels, height, width),
            mean=mean,
            std=std,
            **(facts_of_labels(config, task) if task else {"classes": NO_HEAD}),
        )
        for note in image_notes(folder, info):
            config.note(note)
        return info

    def data(self, folder: Path, info: DatasetInfo) -> dict[str, Any]:
        return image_data(info)

    def more_files(self, model: Model, info: DatasetInfo) -> dict[str, dict[str, Any]]:
        return {PROCESSOR: processor(info)}


def image_data(info: DatasetInfo) -> dict[str, Any]:
    """The `data` section for images as `info` describes them."""
    assert info.image_shape is not None
    channels, height, width = info.image_shape
    normalize = {"mean": list(info.mean), "std": list(info.std)} if info.mean else "none"
    source: dict[str, Any] = {"type": "image_folder", "root": NO_DATA}
    if info.targets or info.label_sets:  # which a folder for each class does not have
        source = {"type": "parquet_images", "train": [NO_DATA]}
        source |= {"target_columns": list(info.targets)} if info.targets else {}
        source |= {"label_separator": "|"} if info.label_sets else {}
    return {
        **source,
        "channels": channels,
        **({"size": height} if height == width else {}),
        "normalize": normalize,
    }


RESAMPLING = {0: "nearest", 1: "Lanczos", 3: "bicubic", 4: "box", 5: "Hamming"}
"""Ways to resize images by their numbers in Pillow, but for the one that is taken here."""


def image_notes(folder: Path, info: DatasetInfo) -> Iterator[str]:
    """What is to be known of how images become inputs."""
    assert info.image_shape is not None
    height, width = info.image_shape[1:]
    values = read_json(folder, PROCESSOR) if has(folder, PROCESSOR) else None
    if values is None:
        yield (
            f"{folder}: no {PROCESSOR}, which would say how images are normalised: a training takes"
            " data.normalize, and pixels are in 0..1 elsewhere"
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
    how = values.get("resample")
    if type(how) is int and how in RESAMPLING:
        yield f"{PROCESSOR} resizes images by {RESAMPLING[how]} interpolation; here it is bilinear"
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
    if not has(folder, PROCESSOR):
        return (), ()
    values = read_json(folder, PROCESSOR)
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


def check_channels(channels: int, config: Config, key: str) -> None:
    """Raise `CheckpointError` for images that are neither grey nor colour."""
    if channels not in (1, 3):
        raise CheckpointError(
            f"{config.file}: {key}: images of {channels} channels, and those read here have 1 or 3"
        )


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


def image_size(info: DatasetInfo) -> int | list[int]:
    """The side of images, or height and width."""
    assert info.image_shape is not None
    _, height, width = info.image_shape
    return height if height == width else [height, width]


def linear(theirs: str, ours: str) -> Iterator[Rule]:
    """The weight and bias of a layer."""
    for kind in ("weight", "bias"):
        yield Rule(f"{theirs}.{kind}", f"{ours}.{kind}")


def attention(theirs: Mapping[str, str], ours: str, mixer: Model, dim: int) -> Iterator[Rule]:
    """Projections of `dim` rows each by our letters: q, k and v are one matrix of ours.

    So are their biases where all three learn one; else each is a parameter of its own.
    """
    together = all(biased(mixer, name) for name in "qkv")
    for i, name in enumerate("qkv"):
        yield Rule(f"{theirs[name]}.weight", f"{ours}qkv.weight", rows(i * dim, dim))
        if together:
            yield Rule(f"{theirs[name]}.bias", f"{ours}qkv.bias", rows(i * dim, dim))
        elif biased(mixer, name):
            yield Rule(f"{theirs[name]}.bias", f"{ours}{name}_bias")
    yield Rule(f"{theirs['o']}.weight", f"{ours}out.weight")
    if biased(mixer, "o"):
        yield Rule(f"{theirs['o']}.bias", f"{ours}out.bias")


def biased(mixer: Model, name: str) -> bool:
    """Whether a projection of attention learns a bias."""
    bias: bool | list[str] = mixer["bias"]
    return bias if isinstance(bias, bool) else name in bias
