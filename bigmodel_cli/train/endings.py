"""How a training ends: which checkpoint is its result, and what is shown of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bigmodel_cli import checkpoints, distributed
from bigmodel_cli.device import autocast
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.train.run import Run
from bigmodel_cli.train.signals import Interrupted
from bigmodel_cli.train.statistics import BATCHES, recomputed_statistics


def impatient(run: Run) -> bool:
    """Whether validations no longer improve (train.patience), so that the run stops early."""
    patience, waited = run.options.patience, run.state.since_best
    if patience is None or waited < patience:
        return False
    run.say(f"stopping early: {waited} validations without a better {run.task.metric}")
    return True


def final_checkpoint(run: Run) -> Path:
    """The run's result: the last checkpoint, or that of train.patience or train.average_last."""
    with run.signals.deferred():
        run.all_saved()
    if run.options.patience is not None and run.validation is not None:
        if run.state.best is not None:
            best = checkpoints.find(run.directory.checkpoints / "best")
            if distributed.world().first:
                with run.signals.deferred():
                    checkpoints.mark(run.directory.checkpoints, "last", best)
            return best
        run.say(
            f"{run.task.metric} was not a finite number in any validation; the result is the last"
            " checkpoint"
        )
    if run.options.average_last is not None:
        return average_as_last(run)
    return checkpoints.find(run.directory.path)


def average_as_last(run: Run) -> Path:
    """Commit the mean of the newest checkpoints' weights as `average`, and point `last` to it.

    See Vaswani et al. 2017, section 6.1.
    """
    newest = run.keeping.averaged(run.directory.checkpoints, run.state.scores)
    contents = run.contents()
    contents.model = checkpoints.mean_weights(
        [checkpoints.read(path, train_state=False).model for path in newest]
    )
    run.say(
        f"averaging the weights of the last {len(newest)} checkpoints, from step"
        f" {newest[0].name[5:].lstrip('0')}"
    )
    with run.signals.deferred(), run.state.swapped_weights(contents.model), run.signals.let_alone():
        # those of the average; a mean of theirs is not
        if statistics := recomputed_statistics(run):
            run.say(f"statistics of batch normalisation: anew, over {BATCHES} training batches")
            contents.model |= statistics
        if run.validation is not None:
            metrics = run.validate()
    with run.signals.deferred():
        if run.validation is not None:
            run.tell(metrics, averaged=len(newest))
        folder = run.directory.checkpoints
        run.saver.save(
            contents, lambda path: checkpoints.mark(folder, "last", path), "average", now=True
        )
    return folder / "average"


def show_result(run: Run) -> None:
    """Show what the result can do; a signal ends only that."""
    try:
        failpoint("train.showing")
        with contextlib.ExitStack() as shown:
            with run.signals.at_gates():  # weights in parts come together
                run.signals.gate()
                shown.enter_context(run.state.averaged())
            shown.enter_context(autocast(run.device, run.options.precision))
            run.observers.on_end(run)
        run.observers.close()
    except Interrupted:
        run.signals.stopping()
        run.say(
            "stopped by a signal after the end of the training: what is shown at the end is"
            " left out"
        )
