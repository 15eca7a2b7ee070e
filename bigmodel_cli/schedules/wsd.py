"""Warm-up, stable, decay."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Fraction
from bigmodel_cli.schedules.base import FallingOptions


class WSDOptions(FallingOptions):
    """Warm-up, stable, decay (Hu et al. 2024): the peak, then a straight line to `final`."""

    type: Literal["wsd"] = "wsd"
    decay: Fraction = Field(
        0.2, description="the part of the run, at its end, in which the rate goes down"
    )

    def span(self, total: int) -> float:
        """decay x total steps, at least one, not before the end of the warm-up."""
        return min(super().span(total), max(1, self.decay * total))

    def shape(self, left: float) -> float:
        return left

    def remarks(self, total: int) -> list[str]:
        """Also warn of a warm-up that reaches into the decay."""
        if self.warmup >= total or self.warmup <= total - 1 - self.decay * total:
            return super().remarks(total)
        return [
            f"train.schedule.warmup: {self.warmup:,} steps of warm-up reach into the last"
            f" {100 * self.decay:.3g} % of the run's {total:,} steps (train.schedule.decay): the"
            f" learning rate goes down right after its peak, in {total - 1 - self.warmup:,} steps"
        ]
