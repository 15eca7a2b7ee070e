"""Schedules: the learning rate over a run. One file each, one name in the table."""

from __future__ import annotations

from typing import Annotated

from bigmodel_cli.config import Table
from bigmodel_cli.schedules.base import AnyScheduleOptions
from bigmodel_cli.schedules.constant import ConstantOptions
from bigmodel_cli.schedules.cosine import CosineOptions
from bigmodel_cli.schedules.inverse_sqrt import InverseSqrtOptions
from bigmodel_cli.schedules.linear import LinearOptions
from bigmodel_cli.schedules.multistep import MultistepOptions
from bigmodel_cli.schedules.wsd import WSDOptions

SCHEDULES = Table(
    "schedule",
    AnyScheduleOptions,
    ConstantOptions,
    LinearOptions,
    CosineOptions,
    InverseSqrtOptions,
    WSDOptions,
    MultistepOptions,
)
ScheduleOptions = Annotated[AnyScheduleOptions, SCHEDULES]

__all__ = ["SCHEDULES", "ConstantOptions", "ScheduleOptions"]
