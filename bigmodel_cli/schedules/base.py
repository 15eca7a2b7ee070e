"""The base classes of schedules: a new one is a file with its options, and a name in the table."""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field

from bigmodel_cli.config import Fraction, Natural, Options


class AnyScheduleOptions(Options):
    """Learning rate over a run: linear warm-up to the peak, then the shape called `type`."""

    type: str
    warmup: Natural = Field(
        0, description="steps of linear warm-up; the step after them has the peak"
    )

    def factor(self, step: int, total: int) -> float:
        """The fraction of the peak learning rate for optimizer step `step` (from 0) of `total`."""
        return (
            (step + 1) / (self.warmup + 1) if step < self.warmup else self.after_warmup(step, total)
        )

    @abstractmethod
    def after_warmup(self, step: int, total: int) -> float:
        """The same for a step that is not one of the warm-up."""

    def remarks(self, total: int) -> list[str]:
        """Warnings about the schedule at this length of run."""
        if self.warmup < total:
            return []
        return [
            f"train.schedule.warmup: {self.warmup:,} steps of warm-up are not fewer than the run's"
            f" {total:,}: the learning rate only rises, to"
            f" {100 * self.factor(total - 1, total):.3g} % of its peak"
        ]


class FallingOptions(AnyScheduleOptions):
    """A schedule that falls to `final` at the last step.

    Where one step alone follows the warm-up, it has the peak.
    """

    final: Fraction = Field(
        0.0, description="the learning rate at the last step, as a fraction of the peak"
    )

    def after_warmup(self, step: int, total: int) -> float:
        """From the peak down to `final` at step total - 1."""
        span = self.span(total)
        if span <= 0:
            return 1.0
        return self.final + (1 - self.final) * self.shape(
            min(1.0, max(0.0, (total - 1 - step) / span))
        )

    def span(self, total: int) -> float:
        """Steps from the last one at the peak to the last of the run."""
        return total - 1 - self.warmup

    @abstractmethod
    def shape(self, left: float) -> float:
        """The height above `final`, from 1 at `left` = 1 (all of the span) to 0 at `left` = 0."""
