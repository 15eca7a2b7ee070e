"""A run in training: what `fit` works with, and how it validates and saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints, distributed
from bigmodel_cli.data import Split
from bigmodel_cli.errors import ProcessError
from bigmodel_cli.evaluation.evaluator import evaluate_split, values_of
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.rundir import RunDirectory
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.keeping import Keeping
from bigmodel_cli.train.loader import BatchLoader
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.observers import Observer
from bigmodel_cli.train.saving import Saver
from bigmodel_cli.train.signals import Signals
from bigmodel_cli.train.state import CPU, CUDA, UNKNOWN, TrainState
from bigmodel_cli.train.step import queued_step


@dataclass
class Run:
    """What `fit` works with, built and resolved."""

    loaded: Loaded  # the model in training; nothing in its spec is auto
    state: TrainState
    objective: Objective
    loader: BatchLoader
    validation: Split | None
    directory: RunDirectory
    origin: Mapping[str, Any]  # each checkpoint's record of its data
    signals: Signals
    total: int  # steps; of a run by the clock as foreseen at its present rate
    resume_command: str
    observers: Observer
    news: Sequence[dict[str, Any]] = ()  # records from before the first step
    started: int = 0  # the step that this process began at, or went back to
    compiling: bool = (
        False  # the step in progress is the first one, which is compiled: that takes minutes
    )
    queued: bool = False  # steps are not waited for; see `queued_step`
    taking: Callable[..., Tensor] = queued_step  # which takes such a step
    unread: list[Tensor] = field(default_factory=list)  # what came out of such steps, in order

    @property
    def options(self) -> TrainOptions:
        """The spec's `train`."""
        return self.loaded.spec.train

    @property
    def task(self) -> Task:
        """The task."""
        return self.loaded.task

    @property
    def device(self) -> torch.device:
        """The device."""
        return self.loaded.device

    def say(self, text: str) -> None:
        """Show a line to the user."""
        self.observers.on_message(text)

    @property
    def reached(self) -> str:
        """The progress, for people."""
        step, minutes = self.state.step, self.options.minutes
        if minutes is None:
            return f"step {step} of {self.total}"
        return (
            f"step {step}, after {self.state.elapsed / 60:.2f} of {minutes:g} minutes of training"
        )

    @cached_property
    def interval(self) -> int | None:
        """Steps between validations."""
        return self.options.validation_interval(self.loader.batches.per_epoch)

    @property
    def saving(self) -> int | None:
        """Steps between checkpoints."""
        return self.options.checkpoint_every or self.interval

    @property
    def keeping(self) -> Keeping:
        """The rules of which checkpoints are kept."""
        return Keeping(self.options, self.total, self.saving, self.task.higher_is_better)

    def batches(self) -> Generator[list[dict[str, Tensor]]]:
        """The micro-batches of each remaining step."""
        end = self.total if self.options.minutes is None else UNKNOWN
        return self.loader.steps(self.state.batch, end + self.state.passed)

    def contents(self) -> checkpoints.Contents:
        """The contents of a checkpoint of the present state."""
        weights, tensors, values = self.state.capture()
        return checkpoints.Contents(
            step=self.state.step,
            model=weights,
            train=tensors,
            state={**values, **self.origin},
            spec=self.loaded.spec.recorded(),
            info=self.loaded.info.to_json(),
            assets=self.loaded.assets,
            own=frozenset(tensors) & {CPU, CUDA},
        )

    @property
    def _unchanging(self) -> frozenset[str]:
        """Weights that the whole run leaves as they are, by name."""
        if self.state.ema or self.options.unfreeze_every is not None:
            return frozenset()
        return frozenset(n for n, p in self.state.kept.named().items() if not p.requires_grad)

    @cached_property
    def saver(self) -> Saver:
        """What saves the checkpoints."""
        return Saver(self.options.save_async, self.directory.checkpoints, self.say)

    def save(self, better: bool = False, *, waiting: bool = True, now: bool = False) -> None:
        """Commit a checkpoint of this step, move `last` (and `best`), and prune those that the spec
        does not keep; perhaps while training goes on, but for `now` (train.save_async).

        Where it does not, the other processes wait for the first one, with `waiting`.
        """
        self.saved()
        state, folder, keeping = self.state, self.directory.checkpoints, self.keeping
        self.observers.on_checkpoint(state.step)
        scores = dict(state.scores)

        def commit(path: Path) -> None:
            checkpoints.mark(folder, "last", path)
            if better:
                checkpoints.mark(folder, "best", path)
            keeping.prune(folder, scores)

        if self.saver.save(self.contents(), commit, now=now, unchanging=self._unchanging):
            return
        first = distributed.world().first
        self._record(state.step, folder / checkpoints.step_name(state.step) if first else None)
        if waiting:
            distributed.wait_for_all()

    def saved(self) -> None:
        """Wait for a checkpoint that is being written. Raises `ResourceError` where it fails.

        The others may come back before the first process has committed it: see `all_saved`.
        """
        if (found := self.saver.wait()) is not None:
            self._record(found.step, found.path)

    def all_saved(self) -> None:
        """The same in all processes: from here on all find the same checkpoints."""
        self.saved()
        distributed.wait_for_all()

    def look_at_save(self) -> None:
        """Record a checkpoint that was written meanwhile. Raises `ResourceError` where that failed:
        in the first process, as it does for all.
        """
        if distributed.world().first and self.saver.is_over:
            self.saved()

    def end_saving(self) -> None:
        """Wait for a checkpoint that is being written, however the run ended: it has its error."""
        try:
            self.saved()
        except ProcessError:
            pass  # of which the run ends
        except Exception as error:
            self.say(f"warning: {error}")
        self.saver.copies = checkpoints.Copies()

    def _record(self, step: int, path: Path | None) -> None:
        """Say in status.json that a checkpoint is there, in the process that committed it."""
        self.directory.write_status("running", 0, "", step, path)

    def validate(self) -> dict[str, float]:
        """Metrics over the whole validation split, with averaged weights, if any."""
        assert self.validation is not None
        failpoint("train.validating")
        state, division = self.state, self.state.division
        rows = division.validation_at(state.batch)
        with self.signals.deferred(), state.averaged(), self.signals.let_alone():
            judged = evaluate_split(
                self.loaded,
                self.validation,
                self.task.validation_text_metrics or None,
                rows,
                self.say,
            )
        if judged.halved:
            division.validation[state.batch] = judged.rows
            division.write(self.directory)
        return dict(distributed.told(values_of(self.task, judged.measures)))

    def tell(self, metrics: dict[str, float], averaged: int | None = None) -> None:
        """Record and show a validation; `averaged`: of the mean of that many checkpoints.

        Its batch size is recorded too where memory made it smaller than the spec's.
        """
        rows = self.state.division.validation.get(self.state.batch)
        info = {"averaged": averaged, "validation_batch": rows}
        given = {name: value for name, value in info.items() if value is not None}
        self.observers.write({"step": self.state.step, **given, "val": metrics})

    def note(self, metrics: dict[str, float]) -> bool:
        """Record a validation; True where it is the best so far (never if it is not finite)."""
        self.tell(metrics)
        state, value = self.state, metrics[self.task.metric]
        finite = math.isfinite(value)
        better = finite and (
            state.best is None
            or (value > state.best if self.task.higher_is_better else value < state.best)
        )
        state.scores[str(state.step)] = value if finite else None
        state.since_best = 0 if better else state.since_best + 1
        if better:
            state.best = value
        return better
