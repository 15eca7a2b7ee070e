"""Down in a straight line."""

from __future__ import annotations

from typing import Literal

from bigmodel_cli.schedules.base import FallingOptions


class LinearOptions(FallingOptions):
    """From the peak to `final` in a straight line."""

    type: Literal["linear"] = "linear"

    def shape(self, left: float) -> float:
        return left
