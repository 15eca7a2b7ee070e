"""What structures are given alike: seconds of training, FLOPs, data, steps; or parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.errors import SpecError
from bigmodel_cli.overrides import Override

TIME, FLOPS, BYTES, SAMPLES, STEPS = "time", "flops", "bytes", "samples", "steps"
PARAMETERS = "parameters"
POINTS = 10
"""Validations of a run."""

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?) ?([A-Za-z]*)")
_SECONDS: Mapping[str, float] = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_ENDINGS = (
    *(("flops", FLOPS), ("flop", FLOPS)),
    *(("parameters", PARAMETERS), ("params", PARAMETERS), ("param", PARAMETERS)),
    *(("samples", SAMPLES), ("steps", STEPS), ("bytes", BYTES), ("b", BYTES)),
)
EXAMPLES = "3min, 2e15flop, 10MB, 50ksamples, 500steps or 1Mparameters"


@dataclass(frozen=True)
class Budget:
    """An `amount` of a kind: seconds, FLOPs, bytes or samples of training data, steps, or a number
    of parameters; `text` as it was written.
    """

    kind: str
    amount: float
    text: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Cost:
    """What a step takes: seconds as measured, useful FLOPs, bytes (None: not known), samples."""

    seconds: float
    flops: float
    bytes: float | None
    samples: int

    def of(self, kind: str) -> float | None:
        """In the unit of a budget of that kind."""
        return {
            TIME: self.seconds,
            FLOPS: self.flops,
            BYTES: self.bytes,
            SAMPLES: float(self.samples),
            STEPS: 1.0,
        }[kind]


def budgets_of(text: str) -> tuple[Budget | None, Budget | None]:
    """The budget of a run's length and that of parameters, of `--budget`; one may be missing.

    Raises `SpecError`.
    """
    found = [_budget(word.strip()) for word in text.split(",")]
    sizes = [budget for budget in found if budget.kind == PARAMETERS]
    lengths = [budget for budget in found if budget.kind != PARAMETERS]
    if len(sizes) > 1 or len(lengths) > 1:
        raise SpecError(f"--budget {text}: at most one length and one number of parameters")
    return next(iter(lengths), None), next(iter(sizes), None)


def _budget(text: str) -> Budget:
    match = _NUMBER.fullmatch(text)
    if match is None or not 0 < float(match[1]) < math.inf:
        raise SpecError(f"--budget {text}: not an amount above 0 with its unit, such as {EXAMPLES}")
    amount, unit = float(match[1]), match[2]
    if unit in _SECONDS:
        return Budget(TIME, amount * _SECONDS[unit], text)
    for ending, kind in (*_ENDINGS, ("", PARAMETERS)):
        prefix = unit[: len(unit) - len(ending)]
        if unit.lower().endswith(ending) and unit and prefix in _PREFIXES:
            return Budget(kind, amount * _PREFIXES[prefix], text)
    raise SpecError(f"--budget {text}: the unit is not known; write one such as {EXAMPLES}")


def steps_of(budget: Budget, cost: Cost, name: str) -> int:
    """How many steps the budget lasts; of time, at the measured rate.

    Raises `SpecError` where it is not one, or where the data has no known size.
    """
    one = cost.of(budget.kind)
    if one is None:
        raise SpecError(
            f"--budget {budget.text}: {name}: how many bytes a sample of this data has is not"
            " known; give samples, such as 50ksamples"
        )
    steps = int(budget.amount / one * (1 + 1e-9))
    if steps < 1:
        raise SpecError(
            f"--budget {budget.text}: {name}: one step takes {one:.3g} of it, which is more than"
            " all; give more"
        )
    return steps


def changes_of(budget: Budget | None, cost: Cost, name: str) -> Sequence[Override]:
    """The options by which a run lasts as long as the budget, and is validated evenly.

    Raises `SpecError`.
    """
    alike = [Override("train.patience", None, "--learn"), Override("train.trackers", [], "--learn")]
    if budget is None:
        return alike
    steps, place = steps_of(budget, cost, name), f"--budget {budget.text}"
    length = Override("train.steps", steps, place)
    if budget.kind == TIME:
        length = Override("train.minutes", budget.amount / 60, place)
    every = Override("train.validate_every", max(1, math.ceil(steps / POINTS)), place)
    return [*alike, length, every]
