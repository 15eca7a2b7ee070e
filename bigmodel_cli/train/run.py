"""A run in training: what `fit` works with, and how it validates and saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.data import Split
from bigmodel_cli.distributed import world
from bigmodel_cli.evaluation.evaluator import evaluate_split, values_of
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.rundir import RunDirectory
from bigmodel_cli.sharding import shown
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.keeping import Keeping
from bigmodel_cli.train.loader import BatchLoader
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.observers import Observer
from bigmodel_cli.train.signals import Signals
from bigmodel_cli.train.state import UNKNOWN, TrainState
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
        )

    def save(self, better: bool = False) -> None:
        """Commit a checkpoint of this step, move `last` (and `best`), and prune those that the spec
        does not keep.
        """
        state, folder = self.state, self.directory.checkpoints
        self.observers.on_checkpoint(state.step)
        contents = self.contents()
        with shown([*contents.model.values(), *contents.train.values()]):
            if world().first:
                checkpoints.save(folder, contents)
        if not world().first:
            return
        path = folder / checkpoints.step_name(state.step)
        checkpoints.mark(folder, "last", path)
        if better:
            checkpoints.mark(folder, "best", path)
        self.keeping.prune(folder, state.scores)
        self.directory.write_status("running", 0, "", state.step, path)

    def validate(self) -> dict[str, float]:
        """Metrics over the whole validation split, with averaged weights, if any."""
        assert self.validation is not None
        failpoint("train.validating")
        state, division = self.state, self.state.division
        rows = division.validation_at(state.batch)
        with self.signals.deferred(), state.averaged(), self.signals.let():
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
        return values_of(self.task, judged.measures)

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
