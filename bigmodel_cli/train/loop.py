"""`fit`: the only training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from bigmodel_cli import checkpoints, distributed
from bigmodel_cli.errors import NumericsError, Stopped
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.modes import training_mode
from bigmodel_cli.train.endings import final_checkpoint, impatient, show_result
from bigmodel_cli.train.graphs import taking
from bigmodel_cli.train.held import hold
from bigmodel_cli.train.overflows import note_overflow, numerics_message, sum_up_overflows
from bigmodel_cli.train.rewind import go_back, spiked
from bigmodel_cli.train.run import Run
from bigmodel_cli.train.signals import Interrupted
from bigmodel_cli.train.smaller import fitted
from bigmodel_cli.train.step import StepResult, can_queue, train_step

T = TypeVar("T")


class Stopwatch:
    """Seconds of training per step and per logged record, and the amount of data seen."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds = self.count = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the enclosed code (a validation, a save) from the training time."""
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

    Raises `Stopped` after a signal (a checkpoint is saved) and `NumericsError` where the loss or a
    gradient is not finite (the weights are those before that step, and nothing of it is saved).
    """
    state = run.state
    if state.sharding is None:
        state.held = hold(
            run.loaded.model, state.left_out, run.loaded.spec.adapter, run.options.precision
        )
    run.objective.hold(run.options.precision)
    run.queued = can_queue(state, run.options, run.device)
    run.taking = taking(run.options, run.device, run.say)
    try:
        with run.signals.deferred():
            run.observers.on_start(run)
            run.observers.cut(run.state.step, run.state.rewinds)
            for record in run.news:
                run.observers.write(record)
        path = _train(run)
        run.loader.close()
        if distributed.world().first or run.state.sharding is not None:
            show_result(run)
    finally:
        run.loader.close()
        with run.signals.deferred():
            run.end_saving()
        run.observers.close()
    return path


def _train(run: Run) -> Path:
    """Train to the end; a signal saves a checkpoint, unless in the middle of a step."""
    try:
        with run.signals.at_gates():
            return _steps(run)
    except Interrupted as stop:
        if run.compiling:  # nothing new to save, and the state is in the middle of a step
            raise
        if run.state.sharding is not None and run.state.step == run.started:
            raise  # nor here, and another process may have stopped before it came to its gates
        run.signals.stopping()
        _read(run, Stopwatch())
        run.save(waiting=False, now=True)
        if not distributed.world().first:
            raise Stopped("stopped", stop.number) from None
        path = checkpoints.find(run.directory.path)
        message = f"stopped at {run.reached}; checkpoint {path}; to go on: {run.resume_command}"
        raise Stopped(message, stop.number) from None


def _steps(run: Run) -> Path:
    """Step to the end, validating and saving where due; returns the resulting checkpoint."""
    state, watch = run.state, Stopwatch()
    training_mode(state.model, state.still)
    # what precedes it is saved, except a validation in which the run was stopped
    run.started = state.step
    if state.step and distributed.world().first:
        run.keeping.prune(run.directory.checkpoints, state.scores)
    if run.options.rewind is not None:
        with run.signals.deferred():
            if distributed.told(not checkpoints.steps(run.directory.checkpoints)):
                run.save()  # to go back to while there is no other
    batches = run.batches()
    while True:
        run.signals.gate()
        if _pauses(run):
            _read(run, watch)
        with watch.paused():
            over = _between_steps(run)
        if over:
            break
        run.compiling = run.options.compile == "on" and state.step == run.started
        distributed.nothing_to_save(run.compiling)
        with (
            run.signals.deferred(),
            run.signals.let_alone() if run.compiling else contextlib.nullcontext(),
        ):
            run.signals.gate()
            # one may hang
            with run.signals.let_alone() if run.loader.workers else contextlib.nullcontext():
                micro_batches = next(batches)
            if not _step(run, watch, micro_batches):
                batches, run.started = run.batches(), state.step
        run.compiling = False
        if state.step == run.total and state.loss_scale.skipped:
            sum_up_overflows(run)
    with run.signals.deferred():
        # with its loader workers: an exception of a signal during Python's cleanup is lost, with a
        # traceback
        batches.close()
    return final_checkpoint(run)


def _pauses(run: Run) -> bool:
    """Whether a validation or a checkpoint is due here, or the end."""
    done, intervals = run.state.step, (run.interval, run.saving)
    return done >= run.total or any(n is not None and done % n == 0 for n in intervals)


def _between_steps(run: Run) -> bool:
    """Validate and save where due, and let observers wait; True where the training ends here."""
    state, done, saving = run.state, run.state.step, run.saving
    due = done >= run.total or (run.interval is not None and done % run.interval == 0)
    validating = bool(done) and run.validation is not None and due and str(done) not in state.scores
    metrics = run.validate() if validating else None
    with run.signals.deferred():
        run.look_at_save()
        better = metrics is not None and run.note(metrics)
        over = impatient(run) or done >= run.total
        reached = over or (saving is not None and done % saving == 0)
        if better or (reached if done > run.started else validating):
            run.save(better, now=over)
    if not over:
        run.observers.between_steps(run)
    return over


def _step(run: Run, watch: Stopwatch, micro_batches: list[dict[str, Tensor]]) -> bool:
    """One step, and its record where due; False where the run went back instead (train.rewind)."""
    options, state = run.options, run.state
    failpoint("train.step")
    lr = options.optimizer.lr * options.schedule.factor(state.step, run.total)
    if run.queued:
        run.unread.append(_fitted(run, micro_batches, lr, run.taking))
        result = None
    else:
        result = _fitted(run, micro_batches, lr, train_step)
        if options.rewind is not None and spiked(options.rewind, state, result):
            go_back(options.rewind, run, result)
            return False
        if not result.finite:
            note_overflow(run, result)
    state.step += 1
    state.elapsed += watch.step()
    if result is not None:
        _add(run, watch, result)
    if options.minutes is not None:
        _look_at_clock(run, options.minutes)
    if state.step % options.log_every == 0 or state.step == run.total:
        result = result or _read(run, watch)
        assert result is not None
        _log(run, watch, lr, result)
    if result is None or result.finite:
        state.after_step()
    return True


def _fitted(
    run: Run, micro_batches: list[dict[str, Tensor]], lr: float, take: Callable[..., T]
) -> T:
    """The step's result, in as many pieces as memory asks for, which are recorded."""
    options, state = run.options, run.state
    # other micro-batches would be other sums; others may be waited for in each pass
    if options.deterministic or state.kept.pass_together:
        return take(state, run.objective, options, micro_batches, run.device, lr)
    pieces = state.division.at(state.batch)
    result = fitted(
        state.division,
        state.batch,
        options,
        micro_batches,
        lambda parts: take(state, run.objective, options, parts, run.device, lr),
        lambda text: run.say(f"step {state.step + 1}: {text}"),
        distributed.most,
    )
    if state.division.at(state.batch) != pieces:
        state.division.write(run.directory)
    if state.batch in state.division.pieces:
        run.observers.write(
            {
                "step": state.step + 1,
                "micro_batch_size": options.micro // state.division.pieces[state.batch],
            }
        )
    return result


def _read(run: Run, watch: Stopwatch) -> StepResult | None:
    """Add the results of steps that were not waited for; the last of them.

    Raises `NumericsError` where one is not finite: of it and those after it nothing was used.
    """
    if not run.unread:
        return None
    found, run.unread = [StepResult.of(x) for x in torch.stack(run.unread).tolist()], []
    for before, result in enumerate(found, run.state.step - len(found)):
        if not result.finite:
            run.state.step = before
            raise NumericsError(numerics_message(run, result))
        _add(run, watch, result)
    return found[-1]


def _add(run: Run, watch: Stopwatch, result: StepResult) -> None:
    """Count a step's result in the next record."""
    watch.count += result.size
    if result.finite:
        run.state.loss_sum += result.loss_sum
        run.state.loss_count += result.count


def _look_at_clock(run: Run, minutes: float) -> None:
    """Update the foreseen number of steps of a run by the clock; report it at its first record, and
    its end.
    """
    run.state.elapsed = distributed.told(run.state.elapsed)
    run.total = run.state.steps_in(minutes)
    if run.state.step == run.total:
        run.say(f"{minutes:g} minutes of training are over, after {run.total:,} steps")
    elif run.state.step == run.options.log_every:
        for remark in run.options.remarks(run.total):
            run.say(f"at the rate so far: {remark}")


def _log(run: Run, watch: Stopwatch, lr: float, result: StepResult) -> None:
    """Record the steps since the last record; without a loss where all of them overflowed."""
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
    run.observers.write(record)
