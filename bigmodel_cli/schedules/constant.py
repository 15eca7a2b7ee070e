"""The peak to the end."""

from __future__ import annotations

from typing import Literal

from bigmodel_cli.schedules.base import AnyScheduleOptions


class ConstantOptions(AnyScheduleOptions):
    """The peak from the warm-up to the end."""

    type: Literal["constant"] = "constant"

    def after_warmup(self, step: int, total: int) -> float:
        return 1.0
