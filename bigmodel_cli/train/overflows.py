"""Steps whose loss or gradient is not finite: an error, or under fp16 a lower loss scale."""

from __future__ import annotations

import math

from bigmodel_cli import checkpoints
from bigmodel_cli.errors import NumericsError
from bigmodel_cli.train.run import Run
from bigmodel_cli.train.step import StepResult

HOPELESS = 10
"""Consecutive fp16 overflows at the smallest loss scale after which the run fails."""


def numerics_message(run: Run, result: StepResult) -> str:
    """Of a step that is not finite: what it was, what was kept, and what helps."""
    loss, norm = result.loss, result.norm
    what = (
        f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
    )
    run.saved()  # or the last checkpoint may not be there yet
    saved = any(run.directory.checkpoints.glob("step-*"))
    kept = (
        f"the last checkpoint is {checkpoints.find(run.directory.path)}"
        if saved
        else "no checkpoint was saved yet"
    )
    return (
        f"step {run.state.step + 1}: {what}; this step changed nothing, and {kept}. Lower"
        " train.optimizer.lr, set train.max_grad_norm: 1.0, or compute in train.precision: fp32"
    )


def note_overflow(run: Run, result: StepResult) -> None:
    """A step that is not finite: an error, unless a lower loss scale may help (fp16; reported
    once).
    """
    scale = run.state.loss_scale
    if not scale.dynamic or scale.stuck >= HOPELESS:
        raise NumericsError(numerics_message(run, result))
    if scale.skipped == 1:
        run.say(
            f"step {run.state.step + 1}: overflow in fp16; this step changed nothing, and the loss"
            f" scale falls to {scale.value:,.0f} (reported once; metrics.jsonl counts such"
            " steps as skipped)"
        )


def sum_up_overflows(run: Run) -> None:
    """Report how many steps of the run changed nothing.

    Raises `NumericsError` where not one did.
    """
    state = run.state
    if state.optimizer.steps == 0:
        raise NumericsError(
            f"none of the {state.step:,} steps changed anything: each overflowed in fp16, whose"
            f" loss scale fell to {state.loss_scale.value:,.0f}; train longer, or compute in"
            " train.precision: bf16 or fp32"
        )
    run.say(
        f"fp16: {state.loss_scale.skipped:,} of {state.step:,} steps overflowed and changed nothing"
    )
