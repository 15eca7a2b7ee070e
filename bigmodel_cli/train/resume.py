"""Going on with a run: what it has on disk, and whether the spec and the data are still those that it began with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bigmodel_cli import checkpoints
from bigmodel_cli.console import say
from bigmodel_cli.data import DataSet
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.rundir import RunDirectory
from bigmodel_cli.spec import Spec, from_dict

MAY_CHANGE = {
    "train.steps",
    "train.epochs",
    "train.log_every",
    "train.validate_every",
    "train.validate_epochs",
    "train.validation_batch",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_best",
    "train.average_last",
    "train.patience",
    "train.rewind.most",
    "train.tensorboard",
}
"""Options that a resumed run may give anew: they do not change what a step computes (a longer run bends its schedule)."""


def latest_directory(root: Path, name: str) -> Path:
    """The newest of runs/name, runs/name-2, ... Raises `SpecError` where there is none."""
    found = [p for p in root.glob(f"{name}*") if p.name == name or p.name.removeprefix(f"{name}-").isdigit()]
    if not found:
        raise SpecError(f"--resume: there is no run {root / name} to go on with; start it without --resume")
    return max(found, key=lambda p: int(p.name.removeprefix(name).removeprefix("-") or 1))


@dataclass(frozen=True)
class Previous:
    """What a resumed run has: its resolved spec, and its newest good checkpoint, if one was committed."""

    spec: Spec
    path: Path | None
    contents: checkpoints.Contents | None


def previous_run(directory: RunDirectory) -> Previous | None:
    """The run to go on with; None where it was stopped before anything was recorded."""
    contents = checkpoints.newest(directory.checkpoints, say)
    recorded = directory.path / "spec.yaml"
    if contents is not None:
        return Previous(from_dict(contents.spec), directory.checkpoints / f"step-{contents.step:08d}", contents)
    if recorded.exists():
        say("no checkpoint was committed yet: starting from the first step")
        return Previous(from_dict(yaml.safe_load(recorded.read_text(encoding="utf-8"))), None, None)
    return None


def merge_resumed(new: Spec, old: Spec) -> Spec:
    """The spec to go on with: `new`, with autos as they were decided. Raises `SpecError` where it would train otherwise."""
    decided = {
        name: getattr(old.train, name)
        for name in ("precision", "memory_format", "compile")
        if getattr(new.train, name) == "auto"
    }
    new = new.model_copy(update={"train": new.train.model_copy(update=decided)})
    before, after = dict(_leaves(old.to_dict())), dict(_leaves(new.to_dict()))
    changed = [p for p in sorted(before.keys() | after.keys()) if before.get(p) != after.get(p) and p not in MAY_CHANGE]
    if changed:
        lines = "".join(f"\n  {p}: {before.get(p)!r} -> {after.get(p)!r}" for p in changed)
        raise SpecError(
            f"--resume: the spec is not the one that this run began with; undo the change or start a new run:{lines}"
        )
    return new


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """(dotted path, scalar) of every leaf of plain values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return [(path, value)]
    return [leaf for key, inner in items for leaf in _leaves(inner, f"{path}.{key}" if path else str(key))]


def check_fingerprint(contents: checkpoints.Contents, data: DataSet) -> None:
    """Raise `CheckpointError` where the data is not what the run was trained on."""
    if contents.state["fingerprint"] != data.fingerprint:
        raise CheckpointError(
            "--resume: the data is not what this run was trained on (its fingerprint differs); restore it, or start a new run, "
            "perhaps with `bigmodel finetune --from` this checkpoint"
        )
