"""A folder in Hugging Face's layout: config.json, safetensors with an index, tokenizer.

Everything is read within the bounds of our own checkpoints: regular files only, sizes known before
anything is read, each header checked, no code run. Tensors stay in the files until they are copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.checkpoints.files import MOST_JSON, clipped, opened, parse_json, read_file
from bigmodel_cli.checkpoints.manifest import MOST_SIZE
from bigmodel_cli.convert.config import Config
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor, torch

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ANOTHER = "use another checkpoint"


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies."""

    path: Path
    first: int
    size: int
    described: Tensor  # on the meta device


class FolderTensors(Mapping[str, Tensor]):
    """The tensors of a folder by name, on the meta device; `read` gives one."""

    def __init__(self, stored: dict[str, _Stored]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].described

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, mapped from its file: pages are read when they are used."""
        at = self.stored[name]
        with opened(at.path, MOST_SIZE) as file:
            if os.fstat(file.fileno()).st_size != at.size:
                raise CheckpointError(f"{at.path}: changed while it was read; {ANOTHER}")
        mapped = torch.from_file(str(at.path), shared=False, size=at.size, dtype=torch.uint8)
        content = mapped[at.first : at.first + at.described.nbytes]
        if at.first % at.described.element_size():  # cannot be viewed as numbers of this size
            content = content.clone()
        return content.view(at.described.dtype).view(at.described.shape)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder in this layout, rather than a checkpoint of ours."""
    return os.path.isfile(path / CONFIG)


def read_config(folder: Path) -> Config:
    """The content of config.json. Raises `CheckpointError`.

    Refused: code that the folder would have run (`auto_map`), and compressed weights.
    """
    config = Config(read_json(folder / CONFIG), str(folder / CONFIG))
    if "auto_map" in config.values:
        raise CheckpointError(
            f"{config.file}: auto_map: this model is code that comes with it, which is not run;"
            f" {ANOTHER}"
        )
    if "quantization_config" in config.values:
        raise CheckpointError(
            f"{config.file}: quantization_config: compressed weights are not read; take those in"
            " bf16, fp16 or fp32"
        )
    return config


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises `CheckpointError`."""
    try:
        values = parse_json(read_file(path, MOST_JSON))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({clipped(str(error))}); {ANOTHER}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: damaged (not a mapping); {ANOTHER}")
    return values


def open_tensors(folder: Path) -> FolderTensors:
    """The tensors of the folder's safetensors files, headers checked. Raises `CheckpointError`."""
    if os.path.lexists(folder / INDEX):
        listed = _index(folder / INDEX)
    elif os.path.lexists(folder / WEIGHTS):
        listed = {WEIGHTS: None}
    else:
        raise CheckpointError(_without_weights(folder))
    stored: dict[str, _Stored] = {}
    for name, expected in listed.items():
        path = folder / name
        if not os.path.lexists(path):
            raise CheckpointError(f"{path}: missing; {INDEX} names it; {ANOTHER}")
        found = _one_file(path)
        if expected is not None and found.keys() != expected:
            odd = min(found.keys() ^ expected)
            raise CheckpointError(f"{path}: {clipped(odd)!r} is not where {INDEX} says; {ANOTHER}")
        stored |= found
    return FolderTensors(stored)


def _index(path: Path) -> dict[str, set[str] | None]:
    """Each file's tensors. Raises `CheckpointError` for a name that is not of a file beside it."""
    mapped = read_json(path).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise CheckpointError(f"{path}: damaged (no weight_map); {ANOTHER}")
    files: dict[str, set[str] | None] = {}
    for tensor, name in mapped.items():
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise CheckpointError(
                f"{path}: {clipped(repr(name))} is not the name of a file beside it; {ANOTHER}"
            )
        known = files.setdefault(name, set())
        assert known is not None
        known.add(tensor)
    return files


def open_file(path: Path) -> FolderTensors:
    """The tensors of one safetensors file, its header checked. Raises `CheckpointError`."""
    return FolderTensors(_one_file(path))


def _one_file(path: Path) -> dict[str, _Stored]:
    with opened(path, MOST_SIZE) as file:
        size = os.fstat(file.fileno()).st_size
        start, tensors = safe.read_header(file, path, size)
    found, first = {}, len(start)
    for name, described in tensors.items():
        found[name] = _Stored(path, first, size, described)
        first += described.nbytes
    return found


def _without_weights(folder: Path) -> str:
    names = sorted(os.listdir(folder))
    pickles = [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return (
            f"{folder}: {pickles[0]} is a pickle, which can run code when it is read, and is"
            " refused; convert it to safetensors where it came from"
        )
    return f"{folder}: {CONFIG} is there, and no {WEIGHTS}; {ANOTHER}"
