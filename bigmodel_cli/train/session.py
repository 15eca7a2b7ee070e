"""From a spec to a trained checkpoint: open the data, build the model, fill it, choose how to compute, and `fit`.

Pretraining and finetuning are the same; they differ in what the weights start from.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.console import say
from bigmodel_cli.data import (
    TRAINED_ON,
    Assets,
    DataSet,
    load_trained_on,
    open_data,
    record,
    say_overlaps,
)
from bigmodel_cli.data.files import expand
from bigmodel_cli.device import keep_few_kernels, pick_device
from bigmodel_cli.errors import BigmodelError, Stopped, memory_remedy, status_of
from bigmodel_cli.lazy import Module, load_torch, torch
from bigmodel_cli.loaded import TOKENIZERS, Loaded, say_carried
from bigmodel_cli.optim import describe_weights, summary
from bigmodel_cli.overrides import Change
from bigmodel_cli.promises import check_plugins
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.rundir import RunDirectory
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import build_task
from bigmodel_cli.train.feed import Feed
from bigmodel_cli.train.loop import Run, fit
from bigmodel_cli.train.memory import Plan, check_memory, plan, without_collection
from bigmodel_cli.train.observers import observers
from bigmodel_cli.train.prepare import prepare
from bigmodel_cli.train.resume import (
    Previous,
    Wish,
    check_fingerprint,
    finished,
    latest_directory,
    mark_again,
    previous_run,
    resumed_spec,
)
from bigmodel_cli.train.room import check_enough, check_fits, check_readable, check_step
from bigmodel_cli.train.signals import Interrupted, Signals
from bigmodel_cli.train.start import build_started, check_task, with_length
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import REMEDY, batch_norm_explained


@dataclass(frozen=True)
class Request:
    """What the command line asked for, beside the spec."""

    name: str
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    overrides: tuple[Change, ...] = ()  # of the recorded spec, where a run goes on without one
    accept_data: bool = False
    command: str = "pretrain"
    words: tuple[str, ...] = ("bigmodel",)  # the whole command line, to begin anew
    plugins: tuple[Path, ...] = ()


def train(spec: Spec | None, request: Request, signals: Signals) -> Path:
    """Run the spec (None, to resume: the run's own) and return the resulting checkpoint. Every fault is in errors.py."""
    load_torch()
    signals.start()
    with signals.held(), _open_directory(request) as directory:
        signals.leaving = lambda: directory.failed("stopped", 130, _left(request, directory))
        try:
            with signals.let(), memory_remedy(REMEDY), batch_norm_explained():
                path = _train(spec, request, directory, signals)
        except Interrupted as stop:
            signals.stopping()
            error = Stopped(f"stopped; to go on: {_resume_command(request, directory)}", stop.number)
            directory.failed("stopped", error.status, str(error))
            raise error from None
        except BaseException as fault:
            signals.end()
            stopped = isinstance(fault, Stopped)
            message = str(fault) if isinstance(fault, BigmodelError) else f"{type(fault).__name__}: {fault}"
            directory.failed("stopped" if stopped else "failed", status_of(fault), message)
            raise
        signals.end()
        if directory.recording:
            directory.write_status("done", 0, "", last_checkpoint=path)
        else:  # there was nothing to do
            directory.failed("stopped", 0, "there was nothing to do")
    return path


def dry_run(spec: Spec, device: str, show: Callable[[Plan], None] = lambda plan: None) -> Plan:
    """What `train` would do, training nothing and writing nothing; it is given to `show` also where it does not fit the device."""
    load_torch()
    chosen = pick_device(device, say)
    spec = with_length(spec)
    check_plugins(spec)
    source = _source(spec)
    if source is not None:
        say_carried(spec, checkpoints.read_spec(source), TOKENIZERS)
    data = _open_data(spec, checkpoints.read_assets(source) if source is not None else None)
    check_task(spec, build_task(spec.task, data.facts), data)
    _describe(spec, data)
    check_enough(spec, data.split("train"))
    with without_collection(), batch_norm_explained():
        found = plan(spec, data.facts, data.split("train"), check_memory(spec, data.facts, chosen))
    _describe_steps(spec, found.steps)
    show(found)
    check_fits(
        spec, chosen, found.state_bytes, found.activation_bytes, max(data.split("train").longest_rows(), default=1)
    )
    return found


def _open_directory(request: Request) -> RunDirectory:
    root = Path("runs")
    if request.resume:
        return RunDirectory.open(request.out or latest_directory(root, request.name), resume=True)
    if request.out is not None:
        return RunDirectory.open(request.out, resume=False)
    return RunDirectory.fresh(root, request.name)


def _resolved(given: Spec | None, request: Request, directory: RunDirectory) -> tuple[Spec, Previous | None]:
    """The spec of the run, and what a run that goes on has so far."""
    previous = previous_run(directory) if request.resume else None
    if request.resume:
        wish = Wish(given, request.overrides, request.command)
        given = resumed_spec(directory, previous, wish)
    assert given is not None
    return with_length(given) if previous is None else given, previous


def _train(given: Spec | None, request: Request, directory: RunDirectory, signals: Signals) -> Path:
    device = pick_device(request.device, say)
    spec, previous = _resolved(given, request, directory)
    check_plugins(spec)
    for tracker in spec.train.trackers:
        tracker.check()
    if previous is not None and (result := finished(directory, previous, spec, spec.train.steps)) is not None:
        return result
    torch.manual_seed(spec.train.seed)
    going_on = previous is not None and previous.contents is not None
    source = None if going_on else _source(spec)
    if source is not None and previous is None:
        say_carried(spec, checkpoints.read_spec(source), TOKENIZERS)
    kept = previous.path if previous is not None and going_on else source
    data = _open_data(spec, checkpoints.read_assets(kept) if kept is not None else None)
    changed = previous is not None and check_fingerprint(previous, data, request.accept_data)
    task = build_task(spec.task, data.facts)
    check_task(spec, task, data)
    _describe(spec, data)
    trained_on = _trained_on(spec, data, source, previous, changed)
    if data.split("train").lengths is not None:
        keep_few_kernels()
    torch.manual_seed(spec.train.seed)
    model = build_started(spec, data.facts, device, source, going_on)
    model.to(device)
    check_enough(spec, data.split("train"))
    check_step(spec, data.facts, data.split("train"), model, device)
    feed = Feed(data.split("train"), spec.train, spec.data.loader_workers(), device)
    _describe_start(model, data, feed)
    options, state = prepare(model, task, feed.first, spec)
    check_readable(state)
    spec = spec.model_copy(update={"train": options})
    feed.channels_last = options.memory_format == "channels_last"
    total = options.total_steps(feed.micro.per_epoch)
    if options.steps is None and previous is not None:  # what epochs are in steps the data says
        result = finished(directory, previous, spec, total)
        if result is not None:
            return result
    _describe_steps(spec, total)
    if previous is not None and previous.contents is not None:
        state.restore(previous.contents.model, previous.contents.train, previous.contents.state)
        assert previous.path is not None
        mark_again(directory.checkpoints, previous.path, previous.contents)
        say(f"resuming {directory.path} after step {state.step}")
        _describe_bend(options, previous.spec.train.total_steps(feed.micro.per_epoch), total, state.step)
    if previous is not None:
        state.division.read(directory.path)
    with signals.held():
        if state.division.pieces:
            state.division.write(directory)
        directory.begin(spec.to_yaml(), state.step)
    changes = [*(previous.contents.state.get("data_changes", []) if previous and previous.contents else [])]
    changes += [[state.step, data.fingerprint]] if changed else []
    run = Run(
        loaded=Loaded(directory.path, spec, data.facts, task, model, device, {**data.assets(), **trained_on}),
        state=state,
        feed=feed,
        validation=data.split("val") if "val" in data.splits else None,
        directory=directory,
        contents=lambda s: _contents(spec, data, s, trained_on, changes),
        signals=signals,
        total=total,
        resume_command=_resume_command(request, directory),
        observers=observers(spec, directory),
        news=[{"step": state.step, "data_changed": data.fingerprint}] if changed else [],
    )
    return fit(run)


def _source(spec: Spec) -> Path | None:
    """The checkpoint that a run starts from; its tokenizer and normalisation are used."""
    if not spec.init.checkpoint:
        return None
    return checkpoints.find(expand(spec.init.checkpoint, Path(), "init.checkpoint"))


def _open_data(spec: Spec, assets: Assets | None = None) -> DataSet:
    return open_data(spec.data, base=Path(), seed=spec.train.seed, say=say, assets=assets)


def _describe(spec: Spec, data: DataSet) -> None:
    for note in spec.task.notes(data.facts):
        say(note)


def _trained_on(
    spec: Spec, data: DataSet, source: Path | None, previous: Previous | None, changed: bool
) -> dict[str, bytes]:
    """What the run's checkpoints keep of the items that they were trained on, by name; what splits share is said."""
    if "val" not in data.splits:
        say("no validation: no data is named for it and data.val_fraction is 0, so that no checkpoint is the best one")
    before = load_trained_on(checkpoints.read_assets(source).get(TRAINED_ON) if source is not None else None)
    say_overlaps(data, spec.task.type, before, say)
    if previous is not None and previous.contents is not None and TRAINED_ON in previous.contents.assets:
        recorded = previous.contents.assets[TRAINED_ON]
        return {TRAINED_ON: record(data, spec.task.type, load_trained_on(recorded)) if changed else recorded}
    return {TRAINED_ON: record(data, spec.task.type, before)}


def _describe_start(model: Module, data: DataSet, feed: Feed) -> None:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count = sum(p.numel() for p in model.parameters())
    frozen = f", {count - trainable:,} of them frozen" if trainable < count else ""
    say(f"model: {count:,} parameters{frozen}; data: {len(feed.micro.split):,} training samples")
    described = describe_weights(feed.options.optimizer, named_weights(model))
    say(f"optimizer: {summary(described)}")


def _describe_steps(spec: Spec, total: int) -> None:
    for remark in spec.train.remarks(total):
        say(remark)


def _describe_bend(options: TrainOptions, before: int, total: int, step: int) -> None:
    """Where a resumed run is now longer or shorter: what becomes of the learning rate, whose schedule spans the whole run."""
    if before == total or step >= total:
        return
    factors = [options.schedule.factor(*place) for place in ((step, before), (step, total), (max(0, step - 1), before))]
    was, now, last = (f"{100 * factor:.3g} %" for factor in factors)
    if not math.isclose(factors[0], factors[1]):
        ended = f"had ended at {last}" if step >= before else f"would go on at {was}"
        say(
            f"the run has {total:,} steps instead of {before:,}: its schedule is bent, and the learning rate goes on at "
            f"{now} of its peak, where it {ended}"
        )


def _contents(
    spec: Spec, data: DataSet, state: TrainState, trained_on: dict[str, bytes], changes: list[Any]
) -> checkpoints.Contents:
    weights, tensors, values = state.capture()
    return checkpoints.Contents(
        step=state.step,
        model=weights,
        train=tensors,
        state={
            **values,
            "fingerprint": data.fingerprint,
            "torch": torch.__version__,
            **({"data_changes": changes} if changes else {}),  # [step, fingerprint] of each that was accepted
        },
        spec=spec.recorded(),
        facts=data.facts.to_json(),
        assets={**data.assets(), **trained_on},
    )


def _left(request: Request, directory: RunDirectory) -> str:
    return f"left at once by a second Ctrl-C; to go on: {_resume_command(request, directory)}"


def _resume_command(request: Request, directory: RunDirectory) -> str:
    """How to go on: the run knows its spec. Where it has not begun there is nothing to go on with, and the start is made again."""
    if not directory.begun:
        return shlex.join(word for word in request.words if word != "--resume")
    words = ["bigmodel", request.command, "--resume", "--out", str(directory.path)]
    words += ["--device", request.device] if request.device != "auto" else []
    words += [word for plugin in request.plugins for word in ("--plugin", str(plugin))]
    return shlex.join(words)
