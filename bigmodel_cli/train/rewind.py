"""Going back to the last checkpoint where the loss spikes, and skipping the batches (train.rewind).

As in PaLM (Chowdhery et al. 2022, section 5.1): weights, averages, optimizer, schedule and random
numbers are the checkpoint's, and the batches up to the spike are skipped. Everything follows from
the losses, so that a run that is killed and resumed goes back at the same steps.
"""

from __future__ import annotations

import math
import statistics

from bigmodel_cli import checkpoints, distributed
from bigmodel_cli.errors import NumericsError
from bigmodel_cli.recipe import RewindOptions
from bigmodel_cli.train.run import Run
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import StepResult


def usual_loss(options: RewindOptions, state: TrainState) -> float:
    """The median loss of the last steps; NaN while there are fewer than the window."""
    return statistics.median(state.recent) if len(state.recent) == options.window else math.nan


def spiked(options: RewindOptions, state: TrainState, result: StepResult) -> bool:
    """Whether the step's loss is a spike; else it is added to the window.

    A loss or gradient that is not finite is one too, except in fp16, where the loss scale handles
    it.
    """
    if not result.finite:
        return not state.loss_scale.dynamic
    if result.loss > options.spike * usual_loss(options, state):
        return True
    state.recent = [*state.recent, result.loss][-options.window :]
    return False


def go_back(options: RewindOptions, run: Run, result: StepResult) -> None:
    """Restore the last checkpoint, and skip the batches up to the spike.

    Later checkpoints (saved for a signal) are removed: the run no longer passes there.

    Raises `NumericsError` where the run has no rewinds left.
    """
    state, folder = run.state, run.directory.checkpoints
    run.all_saved()
    usual, step, batch = usual_loss(options, state), state.step + 1, state.batch
    what = f"step {step}: the loss is {result.loss:.4g}"
    if math.isfinite(result.loss):
        what += (
            f", with {usual:.4g} in the steps before"
            if math.isfinite(usual)
            else ", and its gradient not finite"
        )
    remedy = "lower train.optimizer.lr, set train.max_grad_norm: 1.0, or look at the data"
    if state.rewinds >= options.most:
        raise NumericsError(
            f"{what}; the run went back {state.rewinds} times already (train.rewind.most);"
            f" {remedy}. The last checkpoint is {checkpoints.find(run.directory.path)}"
        )
    contents = checkpoints.newest(folder, run.say, run.keeping.bases(folder, state.scores))
    if contents is None:
        raise NumericsError(f"{what}, and there is no checkpoint to go back to; {remedy}")
    elapsed, rewinds = state.elapsed, state.rewinds
    state.restore(contents.model, contents.train, contents.state)
    state.elapsed, state.rewinds, state.passed = elapsed, rewinds + 1, batch + 1 - state.step
    count = step - state.step
    run.say(
        f"{what}; going back to step {state.step}, and past {count:,} batches ({state.rewinds} of"
        f" {options.most} times)"
    )
    base = folder / checkpoints.step_name(state.step)
    distributed.wait_for_all()  # all have read it
    if distributed.world().first:
        checkpoints.mark(folder, "last", base)
        checkpoints.drop_after(folder, base)
    run.observers.cut(state.step, rewinds)
    run.directory.write_status("running", 0, "", state.step, base)
    values = {
        "number": state.rewinds,
        "from": step,
        "loss": result.loss,
        "usual": usual,
        "batches": count,
    }
    run.observers.write({"step": state.step, "rewind": values})
