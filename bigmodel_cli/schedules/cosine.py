"""Down along half a cosine."""

from __future__ import annotations

import math
from typing import Literal

from bigmodel_cli.schedules.base import FallingOptions


class CosineOptions(FallingOptions):
    """From the peak to `final` along half a cosine (Loshchilov and Hutter 2017)."""

    type: Literal["cosine"] = "cosine"

    def shape(self, left: float) -> float:
        """(1 - cos(pi left)) / 2."""
        return 0.5 * (1 - math.cos(math.pi * left))
