"""Trackers: where a run's records go beside metrics.jsonl.

One file per tracker, and one name in the table below.
"""

from __future__ import annotations

from typing import Annotated

from bigmodel_cli.config import Table
from bigmodel_cli.trackers.base import AnyTrackerOptions, TrackedRun, Tracker, figures
from bigmodel_cli.trackers.mlflow import MLflowOptions
from bigmodel_cli.trackers.tensorboard import TensorBoardOptions
from bigmodel_cli.trackers.wandb import WandbOptions

TRACKERS = Table("tracker", AnyTrackerOptions, TensorBoardOptions, WandbOptions, MLflowOptions)
TrackerOptions = Annotated[AnyTrackerOptions, TRACKERS]

__all__ = ["TRACKERS", "AnyTrackerOptions", "TrackedRun", "Tracker", "TrackerOptions", "figures"]
