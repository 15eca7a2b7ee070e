"""Weights of torchvision's classification networks in a file of their own: read and written.

Such a file holds tensors alone. Which network they are of is found by their names and shapes, and
proven by building it; what they were trained on is known of torchvision's own files (by the hash in
their names), and of ours by a JSON file beside them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigmodel_cli.checkpoints import Checkpoint, StoredTensors
from bigmodel_cli.checkpoints.places import Complete, refused
from bigmodel_cli.checkpoints.stored import Tensors, copy_tensors
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.family import CLASSIFICATION
from bigmodel_cli.convert.files import open_file
from bigmodel_cli.convert.folder import read_json
from bigmodel_cli.convert.identifying import COUNTER, identified, outline
from bigmodel_cli.convert.vision import image_data, moments, normalised
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.base import AnyModelOptions
from bigmodel_cli.models.torchvision import (
    AUXILIARY,
    TorchvisionOptions,
    arguments,
    today,
)

ENDINGS = (".pth", ".pt", ".bin", ".safetensors")
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TRANSFORMED = ("googlenet", "inception_v3")
"""Networks whose published weights expect pixels normalised by `HALF` (`transform_input`)."""
_HASHED = re.compile(r".*-([0-9a-f]{8})\.pth")


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights: the network, its tensors by our names, what data for it is like."""

    path: Path
    name: str
    tensors: Mapping[str, Tensor]
    info: DatasetInfo
    notes: tuple[str, ...]

    def spec(self) -> dict[str, Any]:
        """A whole spec around the network, for the commands that need no more than it says."""
        return {
            "model": TorchvisionOptions(name=self.name).model_dump(mode="json"),
            "data": image_data(self.info),
            "task": {"type": CLASSIFICATION},
            "train": {"steps": 1},
        }

    def checkpoint(self) -> Checkpoint:
        """The same as a checkpoint of step 0."""
        return Checkpoint(
            step=0,
            model=HeldTensors(self.tensors),
            train=StoredTensors([], {}),
            state={},
            spec=self.spec(),
            info=self.info.to_json(),
            assets={},
            notes=self.notes,
        )


class HeldTensors(Tensors):
    """Tensors that are in memory, or mapped; those of fewer bits are given as 32-bit numbers."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.described = {
            name: torch.empty(t.shape, dtype=_of_ours(t.dtype), device="meta")
            for name, t in tensors.items()
        }

    def copy_to(self, targets: Mapping[str, Tensor], complete: Complete = refused) -> None:
        copy_tensors(self.tensors, targets, complete)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.tensors:
            yield name, self.glance(name)

    def glance(self, name: str) -> Tensor:
        tensor: Tensor = self.tensors[name].to(self.described[name].dtype)
        return tensor


def _of_ours(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point else dtype


def is_weights_file(path: Path) -> bool:
    """Whether a path is a file of weights, rather than a checkpoint of ours or a folder."""
    return path.suffix in ENDINGS and os.path.isfile(path)


def describe(path: Path) -> WeightsFile:
    """The network whose weights a file holds. Raises `CheckpointError`."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return _describe(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _describe(path: Path, size: int, changed: int) -> WeightsFile:
    given, notes = open_file(path)
    tensors = {today(name): tensor for name, tensor in given.items()}
    ignored = sorted({name.split(".")[0] for name in tensors if name.startswith(AUXILIARY)})
    tensors = {n: t for n, t in tensors.items() if not n.startswith(AUXILIARY)}
    if ignored:
        notes.append(f"{path}: ignored, heads for training alone: {', '.join(ignored)}")
    name, info = identified(path, tensors)
    notes.append(f"{path}: the weights of torchvision's {name}, by their names and shapes")
    for missing in _counters(tensors):
        tensors[missing] = torch.zeros((), dtype=torch.int64)
    info, said = _trained_on(path, name, info)
    return WeightsFile(path, name, tensors, info, (*notes, *said))


def _counters(tensors: Mapping[str, Tensor]) -> list[str]:
    """Numbers of batches that files from before 2018 do not count."""
    norms = [name.removesuffix(".running_mean") for name in tensors if "running_mean" in name]
    return [norm + COUNTER for norm in norms if norm + COUNTER not in tensors]


def _trained_on(path: Path, name: str, info: DatasetInfo) -> tuple[DatasetInfo, list[str]]:
    """What is known of the data: by the JSON file beside it, or torchvision's own table."""
    beside = path.with_suffix(".json")
    if os.path.lexists(beside):
        return _of_beside(beside, info)
    known = _known(path, name)
    if known is not None:
        transforms = known.transforms()
        (side,) = transforms.crop_size
        mean, std = HALF if name in TRANSFORMED else (transforms.mean, transforms.std)
        classes = known.meta["categories"] or info.classes
        info = replace(
            info,
            image_shape=(3, side, side),
            mean=tuple(mean),
            std=tuple(std),
            classes=tuple(classes),
        )
        return info, [f"{path}: torchvision's {known}", normalised(info)]
    if name in TRANSFORMED:
        info = replace(info, mean=HALF[0], std=HALF[1])
    else:
        info = replace(info, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return info, [
        f"{path}: not a file of torchvision's own, and no {beside.name} beside it: the classes are"
        f" numbered, and the normalisation is taken to be the usual one (mean"
        f" {', '.join(map(str, info.mean))}); data.normalize gives another"
    ]


def _of_beside(beside: Path, info: DatasetInfo) -> tuple[DatasetInfo, list[str]]:
    values = read_json(beside.parent, beside.name)
    classes = values.get("classes", list(info.classes))
    size = values.get("size", list(info.image_shape or ())[1:])
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not named or len(set(classes)) != len(info.classes):
        raise CheckpointError(f"{beside}: classes: not {len(info.classes)} different names")
    if not isinstance(size, list) or not all(type(n) is int and 0 < n < 10_000 for n in size):
        raise CheckpointError(f"{beside}: size: not a height and a width")
    mean, std = (), ()
    if values.get("mean"):
        mean, std = moments(values["mean"], values.get("std"), 3, beside)  # type: ignore[assignment]
    info = replace(
        info, classes=tuple(classes), mean=mean, std=std, image_shape=(3, size[0], size[-1])
    )
    return info, [f"{beside}: {len(classes)} classes", normalised(info)]


def _known(path: Path, name: str) -> Any:
    """torchvision's entry of a file, by its name and the hash of its content; None without."""
    import torchvision

    hashed = _HASHED.fullmatch(path.name)
    for member in torchvision.models.get_model_weights(name):
        if hashed and member.url.rpartition("/")[2] == path.name:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            return member if found.startswith(hashed[1]) else None
    return None


def save(
    folder: Path, model: AnyModelOptions, info: DatasetInfo, weights: Mapping[str, Tensor]
) -> Path:
    """Write weights that `load_state_dict(strict=True)` of torchvision's network takes: NAME.pth.

    Beside them goes NAME.json with what they do not say. Raises `SpecError` for another network.
    """
    try:
        named = TorchvisionOptions.model_validate(model.model_dump())
    except ValidationError:
        raise SpecError(
            f"model.type: {model.type} is not one of torchvision's networks; --to onnx takes any"
            " network, --to hf those of published families"
        ) from None
    tensors = outline(named, info)  # its order, and the versions that MNASNet asks for
    tensors.update({name: weights[name].detach().cpu().contiguous() for name in tensors})
    path = folder / f"{named.name}.pth"
    torch.save(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(beside(named, info), indent=2) + "\n")
    return path


def beside(model: TorchvisionOptions, info: DatasetInfo) -> dict[str, Any]:
    """How the network is built in torchvision, and what its inputs and outputs are."""
    assert info.image_shape is not None
    return {
        "name": model.name,
        "arguments": {"num_classes": info.outputs, **arguments(model.name, *info.image_shape[1:])},
        "classes": list(info.classes),
        "size": list(info.image_shape[1:]),
        "mean": list(info.mean),
        "std": list(info.std),
    }
