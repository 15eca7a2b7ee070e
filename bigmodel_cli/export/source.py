"""The checkpoint that is exported: its model, filled, and all that is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.assemble import build_for
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import say_once
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.assets import PREFIX
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.models import Model
from bigmodel_cli.spec import Spec, of_checkpoint


@dataclass(frozen=True)
class Source:
    """A checkpoint with its model on the CPU; a `headless` one has no output layers."""

    path: Path
    spec: Spec
    info: DatasetInfo
    model: Model
    assets: dict[str, bytes]
    step: int
    fingerprint: str
    """Of the data that it was trained on; "" where that is not known."""
    headless: bool
    command: str
    results: dict[str, Any]
    """What `bigmodel eval --json` printed of it, for the card; empty where none is given."""

    @property
    def task(self) -> str:
        """The type of the task that its head is for; "" without one."""
        return "" if self.headless else self.spec.task.head()

    def kept(self, name: str) -> bytes | None:
        """A file of the folder that it was imported from, if any."""
        return self.assets.get(PREFIX + name)


def open_source(given: Path, command: str, results: dict[str, Any]) -> Source:
    """Read a checkpoint, weights and all. Raises `CheckpointError`."""
    load_torch()
    path = opening.find(given)
    contents = opening.read(path)
    for note in contents.notes:
        say_once(note)
    spec, info = of_checkpoint(contents.spec, path), DatasetInfo.from_json(contents.info)
    model = build_for(spec, info, contents.model, draw=False)
    contents.model.hold_as_stored(model)
    fresh = model.output_layers() if contents.headless else ()
    checkpoints.load_weights(model, contents.model, fresh=fresh)
    own = model.state_dict()
    if note := checkpoints.not_finite((name, own[name]) for name in contents.model):
        raise CheckpointError(f"{path}: {note}; export another checkpoint")
    return Source(
        path,
        spec,
        info,
        model.eval(),
        contents.assets,
        contents.step,
        str(contents.state.get("fingerprint", "")),
        contents.headless,
        command,
        results,
    )
