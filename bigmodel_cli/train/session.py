"""From a spec to a trained checkpoint: open the data, build the model, fill it, choose how to compute, and `fit`.

Pretraining and finetuning are the same; they differ in what the weights start from.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli import checkpoints
from bigmodel_cli.attend.rebuilt import draw_reconstructions
from bigmodel_cli.console import say
from bigmodel_cli.data import (
    TRAINED_ON,
    DataSet,
    load_tokenizer,
    load_trained_on,
    open_data,
    record,
    say_overlaps,
)
from bigmodel_cli.data.files import expand
from bigmodel_cli.device import keep_few_kernels, pick_device
from bigmodel_cli.errors import BigmodelError, DataError, Stopped, memory_remedy
from bigmodel_cli.lazy import Module, load_torch, torch
from bigmodel_cli.loaded import TOKENIZERS, Loaded, say_carried
from bigmodel_cli.optim import describe_weights, summary
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.rundir import RunDirectory, fresh_directory
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import CausalLMOptions, MaskedImage, build_task
from bigmodel_cli.train.feed import Feed
from bigmodel_cli.train.loop import Run, fit
from bigmodel_cli.train.memory import Plan, check_memory, longest_rows, plan
from bigmodel_cli.train.prepare import prepare
from bigmodel_cli.train.report import TensorBoard, draw_curve
from bigmodel_cli.train.resume import Previous, check_fingerprint, latest_directory, merge_resumed, previous_run
from bigmodel_cli.train.room import check_enough, check_fits, check_step
from bigmodel_cli.train.signals import Interrupted, Signals
from bigmodel_cli.train.start import build_started, check_task, with_length
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.writing import Decoding, stream_text


@dataclass(frozen=True)
class Request:
    """What the command line asked for, beside the spec."""

    name: str
    out: Path | None = None
    resume: bool = False
    device: str = "auto"
    command: tuple[str, ...] = ("bigmodel",)


def train(spec: Spec, request: Request) -> Path:
    """Run the spec and return the resulting checkpoint. Every fault is in errors.py."""
    load_torch()
    with Signals() as signals:
        try:
            directory = _open_directory(request)
        except Interrupted as stop:
            raise Stopped("stopped before anything was written", stop.number) from None
        with directory:
            try:
                with memory_remedy("set a smaller train.micro_batch, or make the model smaller"):
                    path = _train(spec, request, directory, signals)
            except Interrupted as stop:
                raise _stopped(directory, request, stop, signals) from None
            except BigmodelError as error:
                directory.write_status(_status_name(error), error.status, str(error))
                raise
            directory.write_status("done", 0, "", last_checkpoint=path)
    return path


def dry_run(spec: Spec, device: str) -> Plan:
    """What `train` would do, training nothing and writing nothing."""
    load_torch()
    chosen = pick_device(device, say)
    spec = with_length(spec)
    source = _source(spec)
    if source is not None:
        say_carried(spec, checkpoints.read_spec(source), TOKENIZERS)
    data = _open_data(spec, source)
    check_task(spec, build_task(spec.task, data.facts), data)
    _describe(spec, data)
    check_memory(spec, data.facts, chosen)
    check_enough(spec, data.split("train"))
    found = plan(spec, data.facts, data.split("train"))
    check_fits(
        spec, chosen, found.state_bytes, found.activation_bytes, max(longest_rows(data.split("train")), default=1)
    )
    _describe_steps(spec, found.steps)
    return found


def _open_directory(request: Request) -> RunDirectory:
    root = Path("runs")
    if request.resume:
        path = request.out or latest_directory(root, request.name)
        return RunDirectory.open(path, resume=True)
    return RunDirectory.open(request.out or fresh_directory(root, request.name), resume=False)


def _train(spec: Spec, request: Request, directory: RunDirectory, signals: Signals) -> Path:
    device = pick_device(request.device, say)
    spec = with_length(spec)
    previous = previous_run(directory) if request.resume else None
    if previous is not None:
        spec = merge_resumed(spec, previous.spec)
    torch.manual_seed(spec.train.seed)
    source = _source(spec)
    if source is not None and previous is None:
        say_carried(spec, checkpoints.read_spec(source), TOKENIZERS)
    assets = previous.path if previous is not None and previous.contents is not None else source
    data = _open_data(spec, assets)
    task = build_task(spec.task, data.facts)
    check_task(spec, task, data)
    _describe(spec, data)
    trained_on = _trained_on(spec, data, source, previous)
    if data.split("train").lengths is not None:
        keep_few_kernels()
    torch.manual_seed(spec.train.seed)
    model = build_started(spec, data.facts, device, source if previous is None or previous.contents is None else None)
    model.to(device)
    check_enough(spec, data.split("train"))
    check_step(spec, data.facts, data.split("train"), model, device)
    feed = Feed(data.split("train"), spec.train, getattr(spec.data, "workers", 0), device)
    _describe_start(model, data, feed)
    options, state = prepare(model, task, feed.first, spec)
    spec = spec.model_copy(update={"train": options})
    feed.channels_last = options.memory_format == "channels_last"
    total = options.total_steps(feed.micro.per_epoch)
    _describe_steps(spec, total)
    if previous is not None and previous.contents is not None:
        check_fingerprint(previous.contents, data)
        state.restore(previous.contents.model, previous.contents.train, previous.contents.state)
        say(f"resuming {directory.path} after step {state.step}")
        _describe_bend(options, previous.spec.train.total_steps(feed.micro.per_epoch), total, state.step)
    if previous is not None:
        state.division.read(directory.path)
    if state.division.pieces:
        state.division.write(directory)
    directory.begin(spec.to_yaml(), state.step, state.rewinds)
    run = Run(
        loaded=Loaded(directory.path, spec, data.facts, task, model, device, {**data.assets(), **trained_on}),
        state=state,
        feed=feed,
        validation=data.split("val") if "val" in data.splits else None,
        directory=directory,
        contents=lambda s: _contents(spec, data, s, trained_on),
        signals=signals,
        total=total,
        resume_command=_resume_command(request, directory),
        tensorboard=TensorBoard(directory.path / "tensorboard") if spec.train.tensorboard else None,
    )
    path = fit(run)
    with state.averaged():
        _show_sample(spec, data, model, device)
        if isinstance(task, MaskedImage):
            picture, split = directory.path / "rebuilt.png", "val" if "val" in data.splits else "train"
            draw_reconstructions(model, task, data.split(split), data.facts, device, picture)
            given = ", each hidden patch at its true mean and deviation, which the loss does not ask for"
            say(f"rebuilt images: {picture}{given if task.options.normalize else ''}")
    if not directory.metrics.broken:
        draw_curve(directory.metrics.path, directory.path / "curve.png", task.metric)
        say(f"curve: {directory.path / 'curve.png'}")
    return path


def _show_sample(spec: Spec, data: DataSet, model: Module, device: torch.device) -> None:
    """Text that a language model writes after its training, on stderr."""
    if not isinstance(spec.task, CausalLMOptions) or not spec.task.sample_tokens:
        return
    prompt = spec.task.sample_prompt
    decoding = Decoding(spec.task.sample_tokens, spec.task.sample_temperature, seed=spec.train.seed)
    try:
        text = "".join(stream_text(model, load_tokenizer(data.assets()), spec.data, prompt, decoding, device))
    except DataError as error:
        say(f"no sample is shown: task.sample_prompt: {error}")
        return
    say(f"sample:\n{prompt}{text}\n")


def _source(spec: Spec) -> Path | None:
    """The checkpoint that a run starts from; its tokenizer and normalisation are used."""
    if not spec.init.checkpoint:
        return None
    return checkpoints.find(expand(spec.init.checkpoint, Path(), "init.checkpoint"))


def _open_data(spec: Spec, assets: Path | None = None) -> DataSet:
    return open_data(spec.data, base=Path(), seed=spec.train.seed, say=say, assets=assets)


def _describe(spec: Spec, data: DataSet) -> None:
    for note in spec.task.notes(data.facts):
        say(note)


def _trained_on(spec: Spec, data: DataSet, source: Path | None, previous: Previous | None) -> dict[str, bytes]:
    """What the run's checkpoints keep of the items that they were trained on, by name; what splits share is said."""
    if "val" not in data.splits:
        say("no validation: no data is named for it and data.val_fraction is 0, so that no checkpoint is the best one")
    kept = source / TRAINED_ON if source is not None else None
    before = load_trained_on(kept.read_bytes() if kept is not None and kept.exists() else None)
    say_overlaps(data, spec.task.type, before, say)
    if previous is not None and previous.contents is not None and TRAINED_ON in previous.contents.assets:
        return {TRAINED_ON: previous.contents.assets[TRAINED_ON]}
    return {TRAINED_ON: record(data, spec.task.type, before)}


def _describe_start(model: Module, data: DataSet, feed: Feed) -> None:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count = sum(p.numel() for p in model.parameters())
    frozen = f", {count - trainable:,} of them frozen" if trainable < count else ""
    say(f"model: {count:,} parameters{frozen}; data: {len(feed.micro.split):,} training samples")
    described = describe_weights(feed.options.optimizer, named_weights(model))
    say(f"optimizer: {summary(described)}")


def _describe_steps(spec: Spec, total: int) -> None:
    for remark in spec.train.schedule.remarks(total):
        say(remark)


def _describe_bend(options: TrainOptions, before: int, total: int, step: int) -> None:
    """Where a resumed run is now longer or shorter: what becomes of the learning rate, whose schedule spans the whole run."""
    was, now = (options.schedule.factor(step, steps) for steps in (before, total))
    if before != total and step < total and not math.isclose(was, now):
        say(
            f"the run has {total:,} steps instead of {before:,}: its schedule is bent, and the learning rate goes on at "
            f"{100 * now:.3g} % of its peak"
        )


def _contents(spec: Spec, data: DataSet, state: TrainState, trained_on: dict[str, bytes]) -> checkpoints.Contents:
    weights, tensors, values = state.capture()
    return checkpoints.Contents(
        step=state.step,
        model=weights,
        train=tensors,
        state={**values, "fingerprint": data.fingerprint, "torch": torch.__version__},
        spec=spec.to_dict(),
        facts=data.facts.to_json(),
        assets={**data.assets(), **trained_on},
    )


def _resume_command(request: Request, directory: RunDirectory) -> str:
    words = [w for w in request.command if w != "--resume"]
    if request.out is None:
        words += ["--out", str(directory.path)]
    return shlex.join([*words, "--resume"])


def _status_name(error: BigmodelError) -> str:
    return "stopped" if isinstance(error, Stopped) else "failed"


def _stopped(directory: RunDirectory, request: Request, stop: Interrupted, signals: Signals) -> Stopped:
    """A signal before the first step, or after the last: what is on disk stays as it is."""
    with signals.held():
        signals.pending = None
        message = f"stopped; to go on: {_resume_command(request, directory)}"
        error = Stopped(message, stop.number)
        directory.write_status("stopped", error.status, message)
    return error
