"""`fit`: the only training loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.data import Split
from bigmodel_cli.errors import NumericsError, Stopped
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.modes import training_mode
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.rundir import RunDirectory
from bigmodel_cli.scoring import judge, values_of
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.feed import Feed
from bigmodel_cli.train.keeping import Keeping
from bigmodel_cli.train.observers import Observer
from bigmodel_cli.train.rewind import go_back, spiked
from bigmodel_cli.train.signals import Interrupted, Signals
from bigmodel_cli.train.smaller import fitted
from bigmodel_cli.train.state import UNKNOWN, TrainState
from bigmodel_cli.train.step import StepResult, train_step

Contents = Callable[[TrainState], checkpoints.Contents]
HOPELESS = 10
"""Steps in a row that overflow in fp16 with the smallest loss scale, after which the run is given up."""


@dataclass
class Run:
    """What `fit` works with; everything in it is built and resolved."""

    loaded: Loaded  # the model in training; nothing in its spec is auto any more
    state: TrainState
    feed: Feed
    validation: Split | None
    directory: RunDirectory
    contents: Contents  # a checkpoint's contents for a state
    signals: Signals
    total: int  # steps; of a run by the clock those that it will have at its rate so far
    resume_command: str
    observers: Observer
    news: Sequence[dict[str, Any]] = ()  # records from before the first step
    compiling: bool = False  # the step in progress is the first one, which is compiled: that takes minutes

    @property
    def options(self) -> TrainOptions:
        """How to train."""
        return self.loaded.spec.train

    @property
    def task(self) -> Task:
        """What is learnt."""
        return self.loaded.task

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.loaded.device

    def say(self, text: str) -> None:
        """Tell whoever watches."""
        self.observers.on_message(text)

    @property
    def reached(self) -> str:
        """How far it has come, for people."""
        step, minutes = self.state.step, self.options.minutes
        if minutes is None:
            return f"step {step} of {self.total}"
        return f"step {step}, after {self.state.elapsed / 60:.2f} of {minutes:g} minutes of training"

    def batches(self) -> Generator[list[dict[str, Tensor]]]:
        """The micro-batches of each step that is left."""
        end = self.total if self.options.minutes is None else UNKNOWN
        return self.feed.steps(self.state.batch, end + self.state.passed)

    @property
    def interval(self) -> int | None:
        """Steps between validations."""
        return self.options.validation_interval(self.feed.micro.per_epoch)

    @property
    def keeping(self) -> Keeping:
        """Which checkpoints stay."""
        saving = self.options.checkpoint_every or self.interval
        return Keeping(self.options, self.total, saving, self.task.higher_is_better)


class Stopwatch:
    """Seconds of training, of each step and since the last logged one, and how many of the task's unit were seen in them."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds = self.count = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside (a validation, a save) is no training time."""
        start = time.perf_counter()
        yield
        self.started += time.perf_counter() - start

    def step(self) -> float:
        """Seconds since the last step."""
        now = time.perf_counter()
        taken, self.started = max(now - self.started, 1e-9), now
        self.seconds += taken
        return taken

    def lap(self) -> tuple[float, float]:
        """(seconds, tokens or samples) of the steps since the last lap."""
        lap = self.seconds, self.count
        self.seconds = self.count = 0.0
        return lap


def fit(run: Run) -> Path:
    """Train to the end and return the last checkpoint.

    Raises `Stopped` after a signal (a checkpoint is saved) and `NumericsError` where the loss or a gradient is not finite
    (the weights are those before that step, and nothing of it is saved).
    """
    try:
        with run.signals.held():
            _start(run)
        path = _train(run)
        run.feed.close()
        _end(run)
    finally:
        run.feed.close()
        run.observers.close()
    return path


def _start(run: Run) -> None:
    run.observers.on_start(run)
    run.observers.cut(run.state.step, run.state.rewinds)
    for record in run.news:
        run.observers.on_event(record)


def _end(run: Run) -> None:
    """Show what the run has led to; a signal ends that, and the run's result stands."""
    try:
        failpoint("train.showing")
        with run.state.averaged():
            run.observers.on_end(run)
        run.observers.close()
    except Interrupted:
        run.signals.stopping()
        run.say("stopped by a signal after the end of the training: what is shown at the end is left out")


def _train(run: Run) -> Path:
    """Train to the end; a signal saves a checkpoint on the way out, but in the middle of a step."""
    try:
        return _steps(run)
    except Interrupted as stop:
        if run.compiling:  # there is nothing new to save, and the state is in the middle of a step
            raise
        run.signals.stopping()
        path = save(run)
        message = f"stopped at {run.reached}; checkpoint {path}; to go on: {run.resume_command}"
        raise Stopped(message, stop.number) from None


def _steps(run: Run) -> Path:
    options, state = run.options, run.state
    interval, saving = run.interval, run.keeping.saving
    watch = Stopwatch()
    path: Path | None = None
    training_mode(state.model, state.still)
    batches = run.batches()
    if state.step:
        run.keeping.prune(run.directory.checkpoints, state.scores)
    if options.rewind is not None and not checkpoints.steps(run.directory.checkpoints):
        with run.signals.held():
            path = save(run)  # to go back to before there is another
    started = state.step  # what comes before it is saved, but perhaps for the validation in which the run was stopped
    while True:
        done = state.step
        due = done >= run.total or (interval is not None and done % interval == 0)
        validating = bool(done) and run.validation is not None and due and str(done) not in state.scores
        with watch.paused():
            metrics = _measured(run) if validating else None
            with run.signals.held():
                better = metrics is not None and _noted(run, metrics)
                impatient = options.patience is not None and state.since_best >= options.patience
                reached = done > started and (
                    done == run.total or impatient or (saving is not None and done % saving == 0)
                )
                if better or reached or (validating and done == started):
                    path = save(run, better)
        if impatient:
            run.say(f"stopping early: {state.since_best} validations without a better {run.task.metric}")
        if impatient or done >= run.total:
            break
        run.compiling = options.compile == "on" and state.step == started
        with run.signals.held(), run.signals.let() if run.compiling else contextlib.nullcontext():
            with run.signals.let() if run.feed.workers else contextlib.nullcontext():  # one may hang
                micro_batches = next(batches)
            if not _step(run, watch, micro_batches):
                batches = run.batches()
                started = state.step
        run.compiling = False
        if state.step == run.total and state.loss_scale.skipped:
            _sum_up_overflows(run)
    with run.signals.held():
        batches.close()  # with its loader workers: what a signal raises where Python cleans up is lost, with a traceback
    path = path or checkpoints.find(run.directory.path)
    if options.patience is not None and run.validation is not None and state.best is None:
        run.say(f"{run.task.metric} was not a finite number in any validation; the result is the last checkpoint")
    elif options.patience is not None and state.best is not None:
        path = checkpoints.find(run.directory.checkpoints / "best")
        with run.signals.held():
            checkpoints.mark(run.directory.checkpoints, "last", path)  # the run's name stands for its result
        return path
    if options.average_last is not None:
        return save_average(run)
    return path


def _step(run: Run, watch: Stopwatch, micro_batches: list[dict[str, Tensor]]) -> bool:
    """One step of the run, and its record where one is due; False where the run went back instead (train.rewind)."""
    options, state = run.options, run.state
    failpoint("train.step")
    lr = options.optimizer.lr * options.schedule.factor(state.step, run.total)
    pieces = state.division.at(state.batch)
    result = fitted(
        state.division,
        state.batch,
        options,
        micro_batches,
        lambda parts: train_step(state, run.task, options, parts, run.device, lr),
        lambda text: run.say(f"step {state.step + 1}: {text}"),
    )
    if state.division.at(state.batch) != pieces:
        state.division.write(run.directory)
    if state.batch in state.division.pieces:
        run.observers.on_event(
            {"step": state.step + 1, "micro_batch": options.micro // state.division.pieces[state.batch]}
        )
    if options.rewind is not None and spiked(options.rewind, state, result):
        run.observers.on_event(go_back(options.rewind, state, run.directory, run.keeping, result, run.observers))
        return False
    if not result.finite:
        _note_overflow(run, result)
    state.step += 1
    state.elapsed += watch.step()
    watch.count += result.size
    if options.minutes is not None:
        _look_at_clock(run, options.minutes)
    if result.finite:
        state.loss_sum, state.loss_count = state.loss_sum + result.loss_sum, state.loss_count + result.count
    if state.step % options.log_every == 0 or state.step == run.total:
        _log(run, watch, lr, result)
    if result.finite:
        state.after_step()
    return True


def _look_at_clock(run: Run, minutes: float) -> None:
    """Foresee the steps of a run by the clock anew; say at its first record what that does to the schedule, and its end."""
    run.total = run.state.steps_in(minutes)
    if run.state.step == run.total:
        run.say(f"{minutes:g} minutes of training are over, after {run.total:,} steps")
    elif run.state.step == run.options.log_every:
        for remark in run.options.schedule.remarks(run.total):
            run.say(f"at the rate so far: {remark}")


def save_average(run: Run) -> Path:
    """Commit the mean of the newest checkpoints' weights (Vaswani et al. 2017, section 6.1) as `average`, and let `last` be it."""
    newest = run.keeping.averaged(run.directory.checkpoints, run.state.scores)
    contents = run.contents(run.state)
    contents.model = checkpoints.mean_weights([checkpoints.read(path, train_state=False).model for path in newest])
    run.say(f"averaging the weights of the last {len(newest)} checkpoints, from step {newest[0].name[5:].lstrip('0')}")
    if run.validation is not None:
        with run.signals.held(), run.state.holding(contents.model), run.signals.let():
            metrics = _measured(run)
    with run.signals.held():
        if run.validation is not None:
            _told(run, metrics, averaged=len(newest))
        path = checkpoints.save(run.directory.checkpoints, contents, "average")
        checkpoints.mark(run.directory.checkpoints, "last", path)
    return path


def _numerics_message(run: Run, result: StepResult) -> str:
    loss, norm = result.loss, result.norm
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
    saved = any(run.directory.checkpoints.glob("step-*"))
    kept = f"the last checkpoint is {checkpoints.find(run.directory.path)}" if saved else "no checkpoint was saved yet"
    return (
        f"step {run.state.step + 1}: {what}; this step changed nothing, and {kept}. "
        "Lower train.optimizer.lr, set train.clip: 1.0, or compute in train.precision: fp32"
    )


def _note_overflow(run: Run, result: StepResult) -> None:
    """A step whose loss or gradient is not finite: an error, but where a lower loss scale may help (fp16); said the first time."""
    scale = run.state.loss_scale
    if not scale.dynamic or scale.stuck >= HOPELESS:
        raise NumericsError(_numerics_message(run, result))
    if scale.skipped == 1:
        run.say(
            f"step {run.state.step + 1}: overflow in fp16; this step changed nothing, and the loss scale falls to "
            f"{scale.value:,.0f} (this is said once; metrics.jsonl counts such steps as skipped)"
        )


def _sum_up_overflows(run: Run) -> None:
    """Say how many steps of the whole run changed nothing. Raises `NumericsError` where not one did."""
    state = run.state
    if state.optimizer.steps == 0:
        raise NumericsError(
            f"none of the {state.step:,} steps changed anything: each overflowed in fp16, whose loss scale fell to "
            f"{state.loss_scale.value:,.0f}; train longer, or compute in train.precision: bf16 or fp32"
        )
    run.say(f"fp16: {state.loss_scale.skipped:,} of {state.step:,} steps overflowed and changed nothing")


def _log(run: Run, watch: Stopwatch, lr: float, result: StepResult) -> None:
    """Write a record of the steps since the last one, and show it; without a loss where all of them overflowed."""
    state = run.state
    seconds, count = watch.lap()
    scale = state.loss_scale
    loss = state.loss_sum / state.loss_count if state.loss_count else None
    state.loss_sum = state.loss_count = 0.0
    record: dict[str, Any] = {
        "step": state.step,
        **({"loss": loss} if loss is not None else {}),
        "lr": lr,
        **({"grad_norm": result.norm, **state.statistics()} if result.finite else {}),
        "per_second": count / seconds,
        "elapsed": state.elapsed,
        **({"skipped": scale.skipped, "loss_scale": scale.value} if scale.dynamic else {}),
    }
    run.observers.on_log(record)


def _measured(run: Run) -> dict[str, float]:
    """Metrics over the whole validation split, with the averaged weights where there are any."""
    assert run.validation is not None
    failpoint("train.validating")
    state, division = run.state, run.state.division
    rows = division.validation_at(state.batch)
    with run.signals.held(), state.averaged(), run.signals.let():
        judged = judge(run.loaded, run.validation, run.task.validation_text_metrics or None, rows, run.say)
    if judged.halved:
        division.validation[state.batch] = judged.rows
        division.write(run.directory)
    return values_of(run.task, judged.measures)


def _told(run: Run, metrics: dict[str, float], averaged: int = 0) -> None:
    """Record and show a validation, of the mean of so many checkpoints where that is the run's result.

    Its batch is recorded too where memory made it smaller than the spec's.
    """
    rows = run.state.division.validation.get(run.state.batch)
    facts = {"averaged": averaged or None, "validation_batch": rows}
    given = {name: value for name, value in facts.items() if value is not None}
    run.observers.on_validation({"step": run.state.step, **given, "val": metrics})


def _noted(run: Run, metrics: dict[str, float]) -> bool:
    """Take note of a validation; True where it is the best so far, which what is not a finite number never is."""
    _told(run, metrics)
    state, value = run.state, metrics[run.task.metric]
    finite = math.isfinite(value)
    better = finite and (
        state.best is None or (value > state.best if run.task.higher_is_better else value < state.best)
    )
    state.scores[str(state.step)] = value if finite else None
    state.since_best = 0 if better else state.since_best + 1
    if better:
        state.best = value
    return better


def save(run: Run, better: bool = False) -> Path:
    """Commit a checkpoint of this step, move `last` (and `best`), and prune those that the spec does not keep."""
    state = run.state
    run.observers.on_checkpoint(state.step)
    path = checkpoints.save(run.directory.checkpoints, run.contents(state))
    checkpoints.mark(run.directory.checkpoints, "last", path)
    if better:
        checkpoints.mark(run.directory.checkpoints, "best", path)
    run.keeping.prune(run.directory.checkpoints, state.scores)
    run.directory.write_status("running", 0, "", state.step, path)
    return path
