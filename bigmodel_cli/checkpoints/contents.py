"""What a checkpoint holds, and the names of its files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from bigmodel_cli.lazy import Tensor

FORMAT = 1
MODEL, TRAIN, STATE, FACTS, SPEC = (
    "model.safetensors",
    "train_state.safetensors",
    "state.json",
    "facts.json",
    "spec.yaml",
)
MANIFEST = "manifest.json"
STEP = re.compile(r"step-[0-9]{8,}\Z")


@dataclass
class Contents:
    """What a checkpoint holds. `train` and `state` are what a resume needs beside the weights."""

    step: int
    model: dict[str, Tensor]
    train: dict[str, Tensor]
    state: dict[str, Any]
    spec: dict[str, Any]
    facts: dict[str, Any]
    assets: dict[str, bytes] = field(default_factory=dict)
