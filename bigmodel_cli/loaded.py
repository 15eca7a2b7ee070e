"""A checkpoint ready for use: what `eval`, `predict`, `attend` and `bench` start from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints, models
from bigmodel_cli.config import Facts
from bigmodel_cli.console import say
from bigmodel_cli.device import pick_device
from bigmodel_cli.lazy import Module, load_torch, torch
from bigmodel_cli.spec import Spec, from_dict
from bigmodel_cli.tasks import Task, build_task

TOKENIZERS = ("tokenizer", "source_tokenizer")
"""Options of the data that a checkpoint has settled for all that go on from it: it brings its own."""
PREPARATION = (
    *TOKENIZERS,
    *("normalize", "size", "channels"),
    *("units", "seconds", "rate", "window", "hop", "mels", "low", "high"),
)
"""Those that it has settled for whoever uses it as it is."""


@dataclass(frozen=True)
class Loaded:
    """A model on its device, with all that its checkpoint knows, or that a run's checkpoints will."""

    path: Path
    spec: Spec
    facts: Facts
    task: Task
    model: Module
    device: torch.device
    assets: dict[str, bytes]

    @property
    def precision(self) -> str:
        """The precision in which the run computed; 'fp32' where it was not recorded."""
        recorded = self.spec.train.precision
        return "fp32" if recorded == "auto" or (recorded == "fp16" and self.device.type == "cpu") else recorded


def load_checkpoint(path: Path, device: str = "auto", overrides: Sequence[str] = ()) -> Loaded:
    """Read and verify a checkpoint and build its model, in evaluation mode. `path` may name a run: its last checkpoint is taken."""
    load_torch()
    chosen = pick_device(device, say)
    path = checkpoints.find(path)
    contents = checkpoints.read(path, train_state=False)
    spec = from_dict(contents.spec, overrides, name=str(path / "spec.yaml"))
    if overrides:
        say_carried(spec, contents.spec, PREPARATION, {o.partition("=")[0].strip() for o in overrides})
    facts = Facts.from_json(contents.facts)
    model = models.build(spec.model, facts)  # not on the meta device: tables of positions are not in the file
    checkpoints.load_weights(model, contents.model)
    model.to(chosen).eval()
    return Loaded(path, spec, facts, build_task(spec.task, facts), model, chosen, contents.assets)


def say_carried(spec: Spec, before: dict[str, Any], names: Sequence[str], given: Collection[str] = ()) -> None:
    """Say which options of the data are not used, since a checkpoint with the spec `before` brings what they describe.

    An option as it is by default asks for nothing, unless its path is among those `given`.
    """
    old, new = before.get("data", {}), spec.to_dict()["data"]
    for name in names:
        if name not in old or name not in new or (name in TOKENIZERS and old[name] is None):
            continue
        default = getattr(spec.data, name) == type(spec.data).model_fields[name].default
        if new[name] != old[name] and (not default or f"data.{name}" in given):
            say(f"data.{name}: {_shown(new[name])} is not used: the checkpoint has its own ({_shown(old[name])})")


def _shown(value: Any) -> str:
    return (
        "left out" if value is None else " ".join(map(str, value.values())) if isinstance(value, dict) else str(value)
    )
