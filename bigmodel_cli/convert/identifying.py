"""Which of torchvision's networks some weights are of: by their names and shapes, and proven."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import CheckpointError, OptionError, did_you_mean
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.torchvision import TorchvisionOptions, build_torchvision

COUNTER = ".num_batches_tracked"
HEADS = (
    *("fc", "head", "heads.head", "classifier"),
    *("classifier.1", "classifier.2", "classifier.3", "classifier.5", "classifier.6"),
)
"""The layer of the logits, by network."""
MARKED = {"inception_v3": "Mixed_7c.branch_pool.conv.weight", "vit_": "encoder.pos_embedding"}
"""Networks whose number of parameters depends on an auxiliary head, or the images' size."""
_BUFFERS = (
    *("running_mean", "running_var", "num_batches_tracked"),
    *("relative_position_index", "relative_coords_table"),
)


def identified(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, DatasetInfo]:
    """The network that has exactly these tensors, and what it reads. Raises `CheckpointError`."""
    nearest: list[str] = []
    for name, classes in _candidates(tensors):
        info = DatasetInfo(
            image_shape=(3, *_size(name, tensors)), classes=tuple(map(str, range(classes)))
        )
        wanted = _shapes(name, info)
        found = {n: tuple(t.shape) for n, t in tensors.items()}
        odd = [n for n in wanted | found if wanted.get(n) != found.get(n)]
        if all(n.endswith(COUNTER) and n not in found for n in odd):
            return name, info
        nearest.append(f"{name} (differs in {clipped(odd[0])})")
    names = _names()
    stem = path.stem.rpartition("-")[0] or path.stem
    hint = f"; nearest: {', '.join(nearest[:3])}" if nearest else did_you_mean(stem, names)
    raise CheckpointError(
        f"{path}: its {len(tensors)} tensors, the first of which is {clipped(next(iter(tensors)))},"
        f" are not those of a classification network of torchvision{hint}; of another library take"
        " its folder with config.json"
    )


def _names() -> list[str]:
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _candidates(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int]]:
    """The networks with as many parameters as these, but for the classes, and how many those are.

    torchvision says the number for 1,000 classes. That of `MARKED` networks depends on more.
    """
    import torchvision

    counts = {}  # for 1,000 classes, were this layer the head -> the classes
    total = sum(t.numel() for n, t in tensors.items() if not n.endswith(_BUFFERS))
    for name in HEADS:
        weight, bias = tensors.get(f"{name}.weight"), f"{name}.bias" in tensors
        if weight is not None and weight.dim() >= 2:
            classes = len(weight)
            counts[total + (1000 - classes) * (weight[0].numel() + bias)] = classes
    for name in _names():
        mark = next((mark for start, mark in MARKED.items() if name.startswith(start)), None)
        known = {w.meta["num_params"] for w in torchvision.models.get_model_weights(name)}
        if mark in tensors:
            yield name, next(iter(counts.values()), 1)
        elif mark is None:
            yield from ((name, counts[count]) for count in known & counts.keys())


def _size(name: str, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Height and width of the images: a ViT's by its positions, else torchvision's."""
    import torchvision

    places = tensors.get("encoder.pos_embedding")
    if places is not None and places.dim() == 3 and "conv_proj.weight" in tensors:
        side = round((places.shape[1] - 1) ** 0.5) * tensors["conv_proj.weight"].shape[-1]
        return side, side
    (side,) = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size
    return side, side


def _shapes(name: str, info: DatasetInfo) -> dict[str, tuple[int, ...]]:
    """The tensors of a network of torchvision as it is built here; {} where it cannot be built."""
    try:
        state = outline(TorchvisionOptions(name=name), info)
    except OptionError:
        return {}
    return {n: tuple(t.shape) for n, t in state.items()}


def outline(options: TorchvisionOptions, info: DatasetInfo) -> dict[str, Tensor]:
    """The network's state dict, on the meta device where it can be built there."""
    try:
        with torch.device("meta"):
            return build_torchvision(options, info).state_dict()
    except NotImplementedError:  # RegNet computes its widths with tensors
        return build_torchvision(options, info).state_dict()
