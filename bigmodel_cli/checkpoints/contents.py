"""What a checkpoint holds, and the names of its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bigmodel_cli.lazy import Tensor

FORMATS = (1, 2)
"""Of checkpoints that are read; the last is written. Up to 1 a file held all tensors of its kind, tied ones as often as named."""
MODEL, TRAIN, STATE, FACTS, SPEC = (
    "model.safetensors",
    "train_state.safetensors",
    "state.json",
    "facts.json",
    "spec.yaml",
)
MANIFEST = "manifest.json"
KINDS = (MODEL, TRAIN)
"""Of tensors: each has the file of this name, or several that are numbered."""
TIED = "tied_to"
"""In the manifest: the name under which a tied tensor is stored."""
STEP = re.compile(r"step-[0-9]{8,}\Z")
_SHARD = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})(\.safetensors)")


def shard_names(kind: str, count: int) -> list[str]:
    """The names of the files where tensors of a kind are in so many."""
    stem = kind.removesuffix(".safetensors")
    return [kind] if count == 1 else [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def shard_of(name: str) -> tuple[str, int]:
    """(kind, number of files of that kind) of a file of tensors by its name; for any other file (its name, 1)."""
    found = _SHARD.fullmatch(name)
    return (found[1] + found[3], int(found[2])) if found and found[1] + found[3] in KINDS else (name, 1)


def is_asset(name: str) -> bool:
    """Whether a file of a checkpoint is one that the data gave."""
    return shard_of(name)[0] not in (*KINDS, STATE, FACTS, SPEC)


@dataclass
class Contents:
    """What a checkpoint is to hold. `train` and `state` are what a resume needs beside the weights."""

    step: int
    model: Mapping[str, Tensor]
    train: Mapping[str, Tensor]
    state: dict[str, Any]
    spec: dict[str, Any]
    facts: dict[str, Any]
    assets: dict[str, bytes] = field(default_factory=dict)
