"""The original Transformer's schedule."""

from __future__ import annotations

import math
from typing import Literal

from bigmodel_cli.schedules.base import AnyScheduleOptions


class InverseSqrtOptions(AnyScheduleOptions):
    """sqrt(warmup / step), as the original Transformer's (Vaswani et al. 2017, equation 3)."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"

    def after_warmup(self, step: int, total: int) -> float:
        """sqrt(warmup / step)."""
        return math.sqrt(max(1, self.warmup) / max(1, step))
