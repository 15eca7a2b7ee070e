"""Learning rates over a run."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Fraction, Natural, Options


class Schedule(Options):
    """Learning rate over a run: linear warm-up to the peak, then the shape called `type` down to `final` x peak."""

    type: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = Field(
        "constant",
        description="the shape after the warm-up; inverse_sqrt: as the original Transformer; wsd: constant, then down",
    )
    warmup: Natural = Field(0, description="steps of linear warm-up; the step after them has the peak")
    final: Fraction = Field(
        0.0, description="linear, cosine, wsd: the learning rate at the last step, as a fraction of the peak"
    )
    decay: Fraction = Field(
        0.2, description="wsd: the part of the run, at its end, in which the rate goes down linearly"
    )

    def factor(self, step: int, total: int) -> float:
        """The fraction of the peak learning rate for optimizer step `step` (from 0) of `total`.

        Step `warmup` has the peak, and linear, cosine and wsd have exactly `final` at step total - 1 (where one step alone follows
        the warm-up, it has the peak). Inverse square root: Vaswani et al. 2017, equation 3; it peaks at the end of the warm-up
        and, like constant, ignores `final`. Warm-up, stable, decay: Hu et al. 2024 (MiniCPM), with a linear end of decay x total
        steps, at least one, which does not begin before the warm-up has ended.
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.type == "constant":
            return 1.0
        if self.type == "inverse_sqrt":
            return math.sqrt(max(1, self.warmup) / max(1, step))
        span = float(total - 1 - self.warmup)  # steps from the peak to the last one
        if self.type == "wsd":
            span = min(span, max(1, self.decay * total))
        if span <= 0:
            return 1.0
        left = min(1.0, max(0.0, (total - 1 - step) / span))  # 1 at the peak, 0 at the last step
        shape = 0.5 * (1 - math.cos(math.pi * left)) if self.type == "cosine" else left
        return self.final + (1 - self.final) * shape

    def remarks(self, total: int) -> list[str]:
        """What the run's length does to the schedule, where that is hardly meant: for people."""
        if self.warmup >= total:
            return [
                f"train.schedule.warmup: {self.warmup:,} steps of warm-up are not fewer than the run's {total:,}: the "
                f"learning rate only rises, to {100 * self.factor(total - 1, total):.3g} % of its peak"
            ]
        if self.type == "wsd" and self.warmup > total - 1 - self.decay * total:
            return [
                f"train.schedule.warmup: {self.warmup:,} steps of warm-up reach into the last {100 * self.decay:.3g} % of "
                f"the run's {total:,} steps (train.schedule.decay): the learning rate goes down right after its peak, in "
                f"{total - 1 - self.warmup:,} steps"
            ]
        return []
