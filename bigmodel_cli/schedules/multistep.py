"""Down by a factor at a few milestones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bigmodel_cli.schedules.base import AnyScheduleOptions

Milestone = Annotated[float, Field(gt=0, lt=1)]


class MultistepOptions(AnyScheduleOptions):
    """The peak, multiplied by `gamma` at each milestone, as for ResNets (He et al. 2016)."""

    type: Literal["multistep"] = "multistep"
    milestones: Annotated[list[Milestone], Field(min_length=1)] = Field(
        [0.5, 0.75], description="where in the run the rate goes down, as parts of its steps"
    )
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="what each milestone multiplies the rate by"
    )

    def after_warmup(self, step: int, total: int) -> float:
        """gamma to the power of the milestones that are passed."""
        return self.gamma ** sum(step >= round(milestone * total) for milestone in self.milestones)

    def remarks(self, total: int) -> list[str]:
        """Also warn of a milestone within the warm-up, where the peak is not reached."""
        early = [m for m in self.milestones if round(m * total) <= self.warmup < total]
        return super().remarks(total) + [
            f"train.schedule.milestones: {m:g} of the run's {total:,} steps lies in the warm-up of"
            f" {self.warmup:,}: the learning rate never reaches its peak"
            for m in early[:1]
        ]
