"""What a checkpoint holds, and the names of its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bigmodel_cli.lazy import Tensor

FORMATS = (1, 2)
"""Format versions that can be read; the last is written.

In format 1 one file held all tensors of its kind, tied ones once per name.
"""
MODEL, TRAIN, STATE, FACTS, SPEC = (
    "model.safetensors",
    "train_state.safetensors",
    "state.json",
    "facts.json",
    "spec.yaml",
)
MANIFEST = "manifest.json"
INDEX = "model.safetensors.index.json"
"""Which of several files a tensor is in, as Hugging Face writes it; we read the manifest."""
KINDS = (MODEL, TRAIN)
"""Files of tensors: one of this name, or several numbered ones."""
TIED = "tied_to"
"""Manifest key: the name under which a tied tensor is stored."""
STEP = re.compile(r"step-[0-9]{8,}\Z")


def step_name(step: int) -> str:
    """The folder of the checkpoint of a step, within a run's."""
    return f"step-{step:08d}"


@dataclass
class Contents:
    """What a checkpoint is to hold.

    `train` and `state` are what a resume needs beside the weights. Tensors of `own` names are
    others in each process that trains: the first one's are saved.
    """

    step: int
    model: Mapping[str, Tensor]
    train: Mapping[str, Tensor]
    state: dict[str, Any]
    spec: dict[str, Any]
    info: dict[str, Any]
    assets: dict[str, bytes] = field(default_factory=dict)
    own: frozenset[str] = frozenset()

    def size(self) -> int:
        """Bytes of the tensors, about: those that are tied count each time."""
        return sum(t.nbytes for kind in (self.model, self.train) for t in kind.values())
