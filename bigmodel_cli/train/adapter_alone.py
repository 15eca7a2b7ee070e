"""Checkpoints of a run with an adapter hold what it trains; frozen weights stay where it began."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.checkpoints import Checkpoint, TakenLayers
from bigmodel_cli.console import say
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.based import BASE, frozen_weights, record
from bigmodel_cli.models import Model
from bigmodel_cli.rundir import RunDirectory
from bigmodel_cli.train.setup import Opened
from bigmodel_cli.train.state import TrainState


def left_out(opened: Opened, saved: Checkpoint | None, model: Model) -> frozenset[str]:
    """The weights that the run's checkpoints leave out: an adapter's frozen ones, where the run
    started from a checkpoint.
    """
    started = opened.source is not None or (saved is not None and BASE in saved.state)
    return frozen_weights(model) if started and opened.spec.adapter is not None else frozenset()


def based_on(
    opened: Opened, saved: Checkpoint | None, state: TrainState, directory: RunDirectory
) -> dict[str, Any]:
    """Each checkpoint's record of where the weights are that it leaves out."""
    if not state.left_out:
        return {}
    if saved is not None:
        return {BASE: saved.state[BASE]}
    assert opened.source is not None, "that is what left_out asks"
    say(f"checkpoints hold the adapter alone; the frozen weights stay in {opened.source}")
    weights = opening.read(opened.source).model
    if opened.spec.init.layers is not None:
        weights = TakenLayers(weights, opened.spec.init.layers)
    return {BASE: record(opened.source, weights, directory.checkpoints, state.model)}
