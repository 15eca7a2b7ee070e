"""Trackers: where a run's records go beside metrics.jsonl. One file an idea, and one name in the table below."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from bigmodel_cli.plugins import extend
from bigmodel_cli.trackers.base import AnyTrackerOptions, TrackedRun, Tracker, figures
from bigmodel_cli.trackers.mlflow import MLflowOptions
from bigmodel_cli.trackers.tensorboard import TensorBoardOptions
from bigmodel_cli.trackers.wandb import WandbOptions

TRACKERS: dict[str, type[AnyTrackerOptions]] = {
    "tensorboard": TensorBoardOptions,
    "wandb": WandbOptions,
    "mlflow": MLflowOptions,
}
extend({"tracker": TRACKERS})

if TYPE_CHECKING:
    TrackerOptions: TypeAlias = AnyTrackerOptions
else:
    TrackerOptions = Annotated[functools.reduce(operator.or_, TRACKERS.values()), Field(discriminator="type")]

__all__ = ["TRACKERS", "AnyTrackerOptions", "TrackedRun", "Tracker", "TrackerOptions", "figures"]
