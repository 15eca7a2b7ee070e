"""A checkpoint that holds an adapter alone: its frozen weights are those that it was trained on.

They are named by path and by a hash of their content, and are read from there: an adapter of a
million numbers does not take the room of a billion in each of a run's checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints import Checkpoint, TakenLayers
from bigmodel_cli.checkpoints.contents import MANIFEST
from bigmodel_cli.checkpoints.files import MOST_JSON, clipped, read_file
from bigmodel_cli.checkpoints.places import Complete, refused
from bigmodel_cli.checkpoints.stored import Tensors
from bigmodel_cli.convert import folder as folders
from bigmodel_cli.convert.weights import open_tensors
from bigmodel_cli.data.hashes import content_hashes
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Module, Tensor
from bigmodel_cli.roles import adapted_name, plain_name

BASE = "base"
"""The key of state.json."""


def frozen_weights(model: Module) -> frozenset[str]:
    """The names of all weights that are not trained."""
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, p in named if not p.requires_grad)


def record(source: Path, weights: Tensors, folder: Path, model: Module) -> Any:
    """What state.json says of the checkpoint `source`, whose frozen weights a run's checkpoints
    below `folder` leave out: where it is, what it is, which of its `weights` are not used, and
    which layers were taken, where not all are.
    """
    taken = {"layers": weights.taken} if weights.taken else {}
    used = {plain_name(name) for name in model.state_dict()}
    return {
        "path": os.path.relpath(os.path.realpath(source), os.path.realpath(folder)),
        "sha256": identity(source),
        "unused": sorted(name for name in weights if plain_name(name) not in used),
        **taken,
    }


def identity(path: Path) -> str:
    """A hash of a checkpoint's content, of a folder's config and weights, or of a file of weights.

    Raises `CheckpointError`.
    """
    if os.path.isfile(path):
        return content_hashes([path])[0]
    if not folders.is_folder(path):
        return hashlib.sha256(read_file(path / MANIFEST, MOST_JSON)).hexdigest()
    files = sorted({at.place[0] for at in open_tensors(path).stored.values()})
    hashes = content_hashes([path / folders.CONFIG, *files])
    named = zip([folders.CONFIG, *(file.name for file in files)], hashes, strict=True)
    return hashlib.sha256(json.dumps(list(named)).encode()).hexdigest()


def whole(found: Checkpoint, path: Path, read: Callable[[Path], Checkpoint]) -> Checkpoint:
    """The checkpoint at `path` with the weights that it leaves out, which `read` reads.

    Raises `CheckpointError` where they are gone, or are not those that it was trained on.
    """
    if BASE not in found.state:
        return found
    noted = found.state[BASE]
    fields = {"path": str, "sha256": str, "unused": list}
    layers = noted.get("layers", {}) if isinstance(noted, dict) else None
    if not _are_layers(layers) or {k: type(noted[k]) for k in noted if k != "layers"} != fields:
        raise CheckpointError(f"{path / 'state.json'}: {BASE}: damaged; use another checkpoint")
    weights = read(_located(found, noted, path)).model
    if layers:
        weights = TakenLayers(weights, layers)
    return replace(found, model=OnBase(found.model, weights, noted["unused"]))


def _are_layers(noted: Any) -> bool:
    """Whether this is a list of numbers for each stack."""
    return isinstance(noted, dict) and all(
        isinstance(numbers, list) and all(type(n) is int for n in numbers)
        for numbers in noted.values()
    )


def _located(found: Checkpoint, noted: dict[str, Any], path: Path) -> Path:
    named = found.spec.get("init", {}).get("checkpoint")
    places = [Path(os.path.normpath(path.parent / noted["path"]))]
    places += [Path(named)] if isinstance(named, str) else []
    there = [
        place for place in places if folders.is_folder(place) or os.path.exists(place / MANIFEST)
    ]
    for place in there:
        if identity(place) == noted["sha256"]:
            return place
    where = clipped(str((there or places)[0]))
    wrong = (
        f"those at {where} are not the ones it was trained on (another SHA-256)"
        if there
        else f"they are not at {where}"
    )
    raise CheckpointError(
        f"{path}: it holds an adapter alone, without the weights that it was trained on, and"
        f" {wrong}; put them back there (`bigmodel merge` makes a checkpoint that needs no other)"
    )


class OnBase(Tensors):
    """The tensors of a checkpoint, and those that it leaves out."""

    def __init__(self, own: Tensors, base: Tensors, unused: list[str]) -> None:
        self.own, self.base = own, base
        # what an adapter's weights computes from has moved
        moved = {
            f"{name.rpartition('.0.parts.')[0]}.original" for name in own if ".0.parts." in name
        }
        self.names = {}
        for name in base.keys() - set(unused):
            ours = adapted_name(name) if adapted_name(name) in moved else name
            if ours not in own:
                self.names[ours] = name

    def __getitem__(self, name: str) -> Tensor:
        return self.base[self.names[name]] if name in self.names else self.own[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from self.names

    def __len__(self) -> int:
        return len(self.own) + len(self.names)

    def copy_to(self, targets: Mapping[str, Tensor], complete: Complete = refused) -> None:
        own = {name: t for name, t in targets.items() if name not in self.names}
        self.own.copy_to(own, complete)
        ours = {theirs: name for name, theirs in self.names.items()}
        self.base.copy_to(
            {self.names[name]: t for name, t in targets.items() if name in self.names},
            lambda name, tensor: complete(ours[name], tensor),
        )

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.own.stream()
        ours = {theirs: name for name, theirs in self.names.items()}
        yield from ((ours[name], tensor) for name, tensor in self.base.stream() if name in ours)

    def glance(self, name: str) -> Tensor:
        if name in self.names:
            return self.base.glance(self.names[name])
        return self.own.glance(name)
