"""`bigmodel eval`: the task's metrics over a whole split, with their uncertainty and how they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.console import say, table
from bigmodel_cli.data import open_data
from bigmodel_cli.errors import SpecError
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.scoring import Estimate, estimates, score_split

PERCENT = {"accuracy", "error", "top5"}


@dataclass(frozen=True)
class Report:
    """What an evaluation found, and on what."""

    checkpoint: Path
    split: str
    task: str
    precision: str
    metrics: dict[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Each metric's value under its own name, for `jq .accuracy`, and all about it under `metrics`."""
        return {
            **{name: e.value for name, e in self.metrics.items()},
            "metrics": {name: e.to_json() for name, e in self.metrics.items()},
            "checkpoint": str(self.checkpoint),
            "split": self.split,
            "task": self.task,
            "precision": self.precision,
        }

    def to_text(self) -> str:
        """A table for people."""
        rows = [
            [name, *(_number(name, x) for x in (e.value, e.low, e.high)), f"{e.count:,}", e.method]
            for name, e in self.metrics.items()
        ]
        heading = f"{self.checkpoint}: {self.task} on the {self.split} split, computed in {self.precision}"
        return heading + "\n" + table(["metric", "value", "95 % from", "to", "count", "interval"], rows)


def _number(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if name in PERCENT else f"{value:.4f}"


def evaluate_checkpoint(path: Path, overrides: Sequence[str], split: str | None, device: str) -> Report:
    """Score a checkpoint on one split of its data, or of data that `overrides` name."""
    loaded = load_checkpoint(path, device, overrides)
    spec = loaded.spec
    data = open_data(spec.data, base=Path(), seed=spec.train.seed, say=say, assets=loaded.path)
    if loaded.facts.classes != data.facts.classes:
        raise SpecError(
            f"the data's classes {list(data.facts.classes)} are not those of the checkpoint {list(loaded.facts.classes)}; "
            "finetune it first: bigmodel finetune --from CKPT SPEC"
        )
    name = split or ("test" if "test" in data.splits else "val")
    size = spec.train.validation_rows
    scores = score_split(loaded.model, loaded.task, data.split(name), size, loaded.device, loaded.precision)
    return Report(loaded.path, name, loaded.task.name, loaded.precision, estimates(loaded.task, scores))
