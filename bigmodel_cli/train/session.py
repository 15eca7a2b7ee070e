"""From a spec to a trained checkpoint: open the data, build and fill the model, autotune, `fit`.

Pretraining and finetuning are the same; they differ in what the weights start from.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from bigmodel_cli import distributed
from bigmodel_cli.assemble import Later, assemble, reference_of
from bigmodel_cli.checkpoints import Checkpoint
from bigmodel_cli.console import say
from bigmodel_cli.convert import opening
from bigmodel_cli.data import TRAINED_ON, DataSet, load_trained_on, record, say_overlaps
from bigmodel_cli.device import keep_few_kernels, pick_device
from bigmodel_cli.errors import BigmodelError, Stopped, memory_remedy, status_of
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models import Model
from bigmodel_cli.plugin_faults import plugin_faults
from bigmodel_cli.rundir import RunDirectory
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.adapter_alone import based_on, left_out
from bigmodel_cli.train.batches import micro_batches
from bigmodel_cli.train.divided import mesh_of, room_of
from bigmodel_cli.train.loader import BatchLoader, on_device
from bigmodel_cli.train.loop import fit
from bigmodel_cli.train.meeting import note_number, open_directory, settled, together
from bigmodel_cli.train.normalised import batch_norms
from bigmodel_cli.train.objectives import objective_of
from bigmodel_cli.train.observers import Observers, observers
from bigmodel_cli.train.once import taught_once
from bigmodel_cli.train.passes import GENERATOR, REMEDY, drawn_by
from bigmodel_cli.train.remarks import foreseen, say_bend, say_draws, say_length, say_start
from bigmodel_cli.train.request import Request, how_to_go_on, resume_command
from bigmodel_cli.train.resume import (
    check_fingerprint,
    finished,
    mark_again,
    previous_run,
)
from bigmodel_cli.train.resumed_spec import Previous, resumed_spec
from bigmodel_cli.train.room import (
    check_enough,
    check_readable,
    check_step,
)
from bigmodel_cli.train.run import Run
from bigmodel_cli.train.setup import Opened, open_run, open_task, prepare
from bigmodel_cli.train.signals import Interrupted, Signals
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import batch_norm_explained


def train(spec: Spec | None, request: Request, signals: Signals) -> Path:
    """Train the spec (None, to resume: the run's own) and return the resulting checkpoint.

    Every error is in errors.py.
    """
    load_torch()
    signals.start()
    limit = spec.train.timeout if spec is not None else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.deferred())
        stack.enter_context(together(signals, limit))
        directory, request = open_directory(request)
        stack.enter_context(directory)
        signals.leaving = lambda: directory.failed(
            "stopped", 130, f"left at once by a second Ctrl-C{how_to_go_on(request, directory)}"
        )
        try:
            with (
                signals.let(),
                plugin_faults(),
                contextlib.redirect_stdout(sys.stderr),  # what a plugin prints is not the result
                memory_remedy(REMEDY),
                batch_norm_explained(),
                settled(request, directory),
            ):
                path = _train(spec, request, directory, signals)
        except Interrupted as stop:
            signals.stopping()
            error = Stopped(f"stopped{how_to_go_on(request, directory)}", stop.number)
            directory.failed("stopped", error.status, str(error))
            raise error from None
        except BaseException as fault:
            signals.end()
            stopped = isinstance(fault, Stopped)
            message = (
                str(fault)
                if isinstance(fault, BigmodelError)
                else f"{type(fault).__name__}: {fault}"
            )
            directory.failed("stopped" if stopped else "failed", status_of(fault), message)
            raise
        signals.end()
        if directory.recording:
            directory.write_status("done", 0, "", last_checkpoint=path)
        else:  # there was nothing to do
            directory.failed("stopped", 0, "there was nothing to do")
    return path


def _resolved(
    given: Spec | None, request: Request, directory: RunDirectory
) -> tuple[Spec, Previous | None]:
    """The spec of the run, and what a resumed run has so far."""
    with distributed.first_alone():
        previous = previous_run(directory) if request.resume else None
    if request.resume:
        given = resumed_spec(directory, previous, given, request.overrides, request.command)
    assert given is not None
    for tracker in given.train.trackers:
        tracker.check()
    return given, previous


def _train(given: Spec | None, request: Request, directory: RunDirectory, signals: Signals) -> Path:
    device = pick_device(distributed.device_of(request.device), say)
    wanted, previous = _resolved(given, request, directory)
    if not distributed.begin(device, wanted.train.timeout).alone:
        say(distributed.described(device))
    if (result := finished(directory, previous, wanted, wanted.train.steps)) is not None:
        return result
    saved = previous.contents if previous is not None else None
    with distributed.first_alone():  # it fills the caches
        opened = open_run(wanted, previous.path if previous is not None else None)
    data = opened.data
    changed = check_fingerprint(saved, data, request.accept_data)
    task = open_task(opened.spec, data, first=saved is None)
    trained_on = _trained_on(opened, saved, changed)
    opened = taught_once(opened, task, device, directory.path, previous)
    data = opened.data
    spec, model, state, loader = set_up(opened, task, device, saved)
    total = spec.train.total_steps(loader.batches.per_epoch)
    if (
        spec.train.steps is None
        and (result := finished(directory, previous, spec, total)) is not None
    ):
        return result  # the data decides how many steps an epoch has
    say_length(spec, total, loader.batches.per_epoch)
    if previous is not None:
        _go_on(previous, state, loader, total, directory)
    with signals.deferred():
        if state.division.pieces:
            state.division.write(directory)
        parameters = sum(p.numel() for p in model.parameters())
        directory.about |= {
            "total_steps": total,
            "metric": task.described(),
            "parameters": parameters,
        }
        note_number(directory)
        directory.begin(spec.to_yaml(), state.step)
    assets = {**opened.carried, **data.assets(), **trained_on}
    run = Run(
        loaded=Loaded(directory.path, spec, data.info, task, model, device, assets),
        state=state,
        objective=objective_of(spec, task, data.info, data.assets(), model, device),
        loader=loader,
        validation=data.split("val") if "val" in data.splits else None,
        directory=directory,
        origin=_origin(data, saved, changed)
        | based_on(opened, saved, state, directory)
        | {"draws": drawn_by(spec.train, device)},
        signals=signals,
        total=foreseen(spec.train, total, state),
        resume_command=resume_command(request, directory),
        observers=(
            observers(spec, directory, request.watching)
            if distributed.world().first
            else Observers([])
        ),
        news=[{"step": state.step, "data_changed": data.fingerprint}] if changed else [],
    )
    return fit(run)


def set_up(
    opened: Opened, task: Task, device: torch.device, saved: Checkpoint | None
) -> tuple[Spec, Model, TrainState, BatchLoader]:
    """The spec without any auto, the model, its state at step 0, and its batches."""
    spec, info, split = opened.spec, opened.data.info, opened.data.split("train")
    if split.lengths is not None:
        keep_few_kernels()
    if task.needs_reference:
        task.reference = reference_of(spec, info, device)
    own = None if saved is None else saved.model
    mesh = mesh_of(spec, info, split, device)
    place = torch.device("cpu") if mesh.sharded else device  # until it is in parts
    divides = mesh.shard > 1 and mesh.tensor == 1
    later = Later(room_of(mesh, device)) if divides else None
    model = assemble(spec, info, place, opened.source, saved=own, later=later)
    check_enough(spec, split)
    if not mesh.sharded:
        check_step(spec, info, split, model, device)
    micro = micro_batches(split, spec.train)
    if model.learns_before and own is None:
        if later is not None:
            later.whole(model)
        model.learn_before(on_device(micro[0], place))
    say_start(spec, model, split, spec.train.total_steps(micro.per_epoch))
    kept_elsewhere = left_out(opened, saved, model)
    spec, state = prepare(
        spec, model, task, lambda: on_device(micro[0], device), kept_elsewhere, mesh, device, later
    )
    check_readable(state)
    if state.ema and batch_norms(model, state.still):
        say(
            "batch normalisation: evaluation uses averaged weights with the running statistics of"
            " those in training, which differ a little (train.average_last takes them anew)"
        )
    return spec, model, state, BatchLoader(micro, spec.train, spec.data.loader_workers(), device)


def _go_on(
    previous: Previous,
    state: TrainState,
    loader: BatchLoader,
    total: int | None,
    directory: RunDirectory,
) -> None:
    """Restore the run's checkpoint, if any, and its division of micro-batches."""
    if previous.contents is not None and previous.path is not None:
        state.restore(previous.contents.model, previous.contents.train, previous.contents.state)
        if distributed.world().first:
            mark_again(directory.checkpoints, previous.path, previous.contents)
        say(f"resuming {directory.path} after step {state.step}")
        before, now = previous.spec.train, loader.options
        steps = foreseen(before, before.total_steps(loader.batches.per_epoch), state)
        say_bend(now, steps, foreseen(now, total, state), state.step)
        drawn = previous.contents.state.get("draws", GENERATOR)  # not in those of earlier versions
        say_draws(drawn, drawn_by(now, loader.device))
    state.division.read(directory.path)


def _origin(data: DataSet, saved: Checkpoint | None, changed: bool) -> dict[str, Any]:
    """Each checkpoint's record of the data: its fingerprint, and [step, fingerprint] of accepted
    changes.
    """
    changes = (
        [
            *saved.state.get("data_changes", []),
            *([[saved.step, data.fingerprint]] if changed else []),
        ]
        if saved
        else []
    )
    return {
        "fingerprint": data.fingerprint,
        "torch": torch.__version__,
        **({"data_changes": changes} if changes else {}),
    }


def _trained_on(opened: Opened, saved: Checkpoint | None, changed: bool) -> dict[str, bytes]:
    """The checkpoints' hashes of training items, by file name;
    items shared by splits are reported.
    """
    data, task, source = opened.data, opened.spec.task.type, opened.source
    if "val" not in data.splits:
        say(
            "no validation: no data is named for it and data.val_fraction is 0, so that no"
            " checkpoint is the best one"
        )
    before = load_trained_on(
        opening.read_assets(source).get(TRAINED_ON) if source is not None else None
    )
    say_overlaps(data, task, before, say)
    if saved is not None and TRAINED_ON in saved.assets:
        recorded = saved.assets[TRAINED_ON]
        return {TRAINED_ON: record(data, task, load_trained_on(recorded)) if changed else recorded}
    return {TRAINED_ON: record(data, task, before)}
