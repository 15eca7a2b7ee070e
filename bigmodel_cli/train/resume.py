"""Resuming a run: what is on disk, whether it is finished, whether the data is the same."""

from __future__ import annotations

import os
from pathlib import Path

from bigmodel_cli import checkpoints
from bigmodel_cli.console import say
from bigmodel_cli.convert import opening
from bigmodel_cli.data import DataSet
from bigmodel_cli.errors import BigmodelError, CheckpointError, SpecError
from bigmodel_cli.rundir import SPEC, RunDirectory, has_begun
from bigmodel_cli.spec import Spec, load_recorded, of_checkpoint
from bigmodel_cli.train.resumed_spec import Previous

SETTLED = ("steps", "epochs", "minutes", "average_last", "patience")
"""Options of `train` that decide when a run is finished, and its result."""


def begun_runs(root: Path, name: str) -> dict[int, Path]:
    """Those of runs/name (1), runs/name-2 (2), ... that were started, by number."""
    numbers = {}
    for path in root.iterdir() if os.path.isdir(root) else ():
        number = (
            "1"
            if path.name == name
            else path.name.removeprefix(f"{name}-")
            if path.name[:-1] != name
            else ""
        )
        if path.name.startswith(name) and number.isascii() and number.isdigit() and has_begun(path):
            numbers[int(number)] = path
    return numbers


def latest_directory(root: Path, name: str) -> Path:
    """The newest of runs/name, runs/name-2, ... that was started.

    Raises `SpecError` where there is none.
    """
    numbers = begun_runs(root, name)
    if not numbers:
        raise SpecError(
            f"--resume: there is no run {root / name} to go on with; start it without --resume"
        )
    path = numbers[max(numbers)]
    say(f"--resume: going on with {path}, the newest run of this name")
    return path


def previous_run(directory: RunDirectory) -> Previous | None:
    """The run to resume; None where nothing (readable) was recorded of it."""
    checkpoints.tidy(directory.checkpoints)
    contents = checkpoints.newest(directory.checkpoints, say)
    recorded = directory.path / SPEC
    if contents is not None:
        path = directory.checkpoints / checkpoints.step_name(contents.step)
        spec = of_checkpoint(contents.spec, path)
        return Previous(spec, path, opening.whole(contents, path))
    if not os.path.exists(recorded):
        say(f"{directory.path}: nothing was recorded yet: starting from the first step")
        return None
    try:
        spec = load_recorded(recorded)
    except SpecError as error:
        say(f"warning: the run's own spec cannot be used: {str(error).splitlines()[0]}")
        say(
            "no checkpoint was committed yet: starting from the first step with the spec that is"
            " given"
        )
        return None
    say("no checkpoint was committed yet: starting from the first step")
    return Previous(spec, None, None)


def mark_again(checkpoints_folder: Path, path: Path, contents: checkpoints.Checkpoint) -> None:
    """Point `last` and `best` where this newest checkpoint says, in case the process died before.

    Raises `ResourceError`.
    """
    scores, best = contents.state["scores"], contents.state["best"]
    checkpoints.mark(checkpoints_folder, "last", path)
    reached = [int(step) for step, score in scores.items() if score is not None and score == best]
    first = checkpoints_folder / checkpoints.step_name(min(reached)) if reached else None
    if first is not None and os.path.isdir(first):
        checkpoints.mark(checkpoints_folder, "best", first)


def finished(
    directory: RunDirectory, previous: Previous | None, spec: Spec, total: int | None
) -> Path | None:
    """The verified result of a run that is finished; None where it goes on.

    A finished run is reported.

    A run is finished where its last process said so and no option that decides its end has changed,
    or where it has done its `total` steps (None: not known before the data is).
    """
    if previous is None or previous.contents is None:
        return None
    step, train = previous.contents.step, spec.train
    recorded = directory.previous
    same = all(getattr(train, name) == getattr(previous.spec.train, name) for name in SETTLED)
    ended = train.steps is None or train.patience is not None or step >= train.steps
    done = same and ended and recorded.get("state") == "done" and recorded.get("last_step") == step
    past = total is not None and step > total
    if not done and not past:
        return None
    try:
        result = checkpoints.find(directory.path)
        if result != previous.path:
            checkpoints.read(result, train_state=False).verify()
    except BigmodelError as error:
        say(f"warning: {error}")
        return previous.path if past else None
    longer = (
        f"steps={max(step, train.steps or 0) * 2}"
        if train.minutes is None
        else f"minutes={2 * train.minutes:g}"
    )
    more = f"--set train.{longer} goes on with it"
    where = f"is finished, at step {step:,}"
    if past:
        limit = (
            f"steps {total:,}"
            if train.steps is not None
            else f"epochs {train.epochs:g} ({total:,} steps)"
        )
        where = f"is at step {step:,}, past train.{limit}"
    say(f"{directory.path} {where}: there is nothing to do; {more}")
    return result


def check_fingerprint(
    contents: checkpoints.Checkpoint | None, data: DataSet, accepted: bool
) -> bool:
    """Whether the data differs from what the run was trained on.

    Raises `CheckpointError` where that is not accepted.
    """
    if contents is None or contents.state.get("fingerprint") == data.fingerprint:
        return False
    if accepted:
        say(
            f"the data has changed since step {contents.step:,}: accepted, and recorded in"
            " metrics.jsonl and state.json"
        )
        return True
    raise CheckpointError(
        "--resume: the data is not what this run was trained on (its fingerprint differs); restore"
        " it, go on all the same with --accept-data, or start a new run, perhaps with `bigmodel"
        " finetune --from` this checkpoint"
    )
