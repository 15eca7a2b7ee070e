"""What became of a run, read from its folder."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.bench.learn.others import LOST
from bigmodel_cli.errors import NumericsError
from bigmodel_cli.rundir import STATUS, read_status
from bigmodel_cli.runs import Metric, read_run
from bigmodel_cli.runs.record import training_figures

DIVERGED = "not finite"
DONE = "done"


@dataclass(frozen=True)
class Point:
    """A validation: after so many steps and seconds of training."""

    step: int
    seconds: float
    value: float


@dataclass(frozen=True)
class Outcome:
    """A run that has ended: its last quality, None where the loss was not finite, and its curve.

    `lost` are the seconds that other work took from it; those of the curve are without them.
    """

    structure: str
    power: int
    rate: float
    seed: int
    folder: str
    state: str
    quality: float | None
    metric: Metric
    curve: Sequence[Point] = ()
    lost: float = 0.0

    @property
    def steps(self) -> int:
        """That it took."""
        return self.curve[-1].step if self.curve else 0

    @property
    def share_lost(self) -> float:
        """Of its time, to other work."""
        seconds = self.curve[-1].seconds if self.curve else 0.0
        return self.lost / (self.lost + seconds) if self.lost > 0 else 0.0


def outcome_of(folder: Path, structure: str, power: int, rate: float, seed: int) -> Outcome | None:
    """The outcome of the run in a folder; None where it has not ended."""
    status = read_status(folder / STATUS)
    diverged = status.get("code") == NumericsError.status
    if status.get("state") != DONE and not diverged:
        return None
    run = read_run(folder)
    name, times = run.metric.name, training_figures(folder, "elapsed")
    curve = [
        Point(v.step, _seconds(times, v.step), v.values[name])
        for v in run.validations
        if name in v.values
    ]
    last = run.last()
    quality = None if diverged or last is None else last.values.get(name)
    state = DIVERGED if quality is None else DONE
    lost = math.fsum(seconds for _, seconds in training_figures(folder, LOST))
    return Outcome(
        structure, power, rate, seed, str(folder), state, quality, run.metric, curve, lost
    )


def _seconds(times: Sequence[tuple[int, float]], step: int) -> float:
    """The seconds of training at a step, between those of the records around it."""
    known = [(0, 0.0), *times]
    place = bisect.bisect_left(known, step, key=lambda pair: pair[0])
    if place >= len(known):
        return known[-1][1]
    after = known[place]
    if after[0] == step or place == 0:
        return after[1]
    before = known[place - 1]
    share = (step - before[0]) / (after[0] - before[0])
    return before[1] + share * (after[1] - before[1])
