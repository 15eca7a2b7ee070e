"""Optimizers: how gradients become updates. One file each, one name in the table."""

from __future__ import annotations

from typing import Annotated

from bigmodel_cli.config import Table
from bigmodel_cli.optim.adamw import AdamWOptions
from bigmodel_cli.optim.base import (
    AnyOptimizerOptions,
    Optimizer,
    RecordableOptimizer,
    moved,
    total_norm,
)
from bigmodel_cli.optim.muon import MuonOptions, orthogonal
from bigmodel_cli.optim.schedule_free import ScheduleFreeAdamWOptions
from bigmodel_cli.optim.sgd import SGDOptions
from bigmodel_cli.optim.summary import describe_weights, summary

OPTIMIZERS = Table(
    "optimizer",
    AnyOptimizerOptions,
    AdamWOptions,
    SGDOptions,
    MuonOptions,
    ScheduleFreeAdamWOptions,
)
OptimizerOptions = Annotated[AnyOptimizerOptions, OPTIMIZERS]

__all__ = [
    "OPTIMIZERS",
    "AdamWOptions",
    "MuonOptions",
    "Optimizer",
    "OptimizerOptions",
    "RecordableOptimizer",
    "SGDOptions",
    "describe_weights",
    "moved",
    "orthogonal",
    "summary",
    "total_norm",
]
