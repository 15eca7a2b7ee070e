"""From a spec to a trained checkpoint: open the data, build the model, fill it, choose how to compute, and `fit`.

Pretraining and finetuning are the same; they differ in what the weights start from.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli import checkpoints
from bigmodel_cli.attend.rebuilt import draw_reconstructions
from bigmodel_cli.console import say
from bigmodel_cli.data import DataSet, load_tokenizer, open_data
from bigmodel_cli.data.files import expand
from bigmodel_cli.device import keep_few_kernels, pick_device
from bigmodel_cli.errors import BigmodelError, DataError, Stopped
from bigmodel_cli.lazy import Module, load_torch, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.rundir import RunDirectory, fresh_directory
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import CausalLMOptions, MaskedImage, build_task
from bigmodel_cli.train.choose import apply, choose
from bigmodel_cli.train.feed import Feed
from bigmodel_cli.train.loop import Run, fit
from bigmodel_cli.train.memory import Plan, check_memory, plan
from bigmodel_cli.train.report import TensorBoard, draw_curve
from bigmodel_cli.train.resume import check_fingerprint, latest_directory, merge_resumed, previous_run
from bigmodel_cli.train.signals import Interrupted, Signals
from bigmodel_cli.train.start import build_started, check_task, with_length
from bigmodel_cli.train.state import LossScale, TrainState
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
    data = _open_data(spec, _source(spec))
    check_task(spec, build_task(spec.task), data)
    check_memory(spec, data.facts, chosen)
    return plan(spec, data.facts, data.split("train"))


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
    assets = previous.path if previous is not None and previous.contents is not None else source
    data = _open_data(spec, assets)
    task = build_task(spec.task)
    check_task(spec, task, data)
    if data.split("train").lengths is not None:
        keep_few_kernels()
    torch.manual_seed(spec.train.seed)
    model = build_started(spec, data.facts, device, source if previous is None or previous.contents is None else None)
    model.to(device)
    if spec.train.batch_tokens is None and len(data.split("train")) < spec.train.batch_size:
        raise DataError(
            f"the train split has {len(data.split('train'))} samples, fewer than train.batch_size {spec.train.batch_size}; "
            "use more data or a smaller batch"
        )
    feed = Feed(data.split("train"), spec.train, getattr(spec.data, "workers", 0), device)
    _describe_start(model, data, feed)
    if "auto" in (spec.train.precision, spec.train.memory_format, spec.train.compile):
        spec = spec.model_copy(update={"train": choose(model, task, feed.first(), spec.train, say)})
    apply(model, spec.train)
    feed.channels_last = spec.train.memory_format == "channels_last"
    optimizer = spec.train.optimizer.build(model.named_parameters())
    state = TrainState(model, optimizer, spec.train.ema)
    if spec.train.precision == "fp16":
        state.loss_scale = LossScale(2.0**16, dynamic=True)
    if previous is not None and previous.contents is not None:
        check_fingerprint(previous.contents, data)
        state.restore(previous.contents.model, previous.contents.train, previous.contents.state)
        say(f"resuming {directory.path} after step {state.step}")
    directory.begin(spec.to_yaml(), state.step)
    run = Run(
        loaded=Loaded(directory.path, spec, data.facts, task, model, device, data.assets()),
        state=state,
        feed=feed,
        validation=data.split("val") if "val" in data.splits else None,
        directory=directory,
        contents=lambda s: _contents(spec, data, s),
        signals=signals,
        total=spec.train.total_steps(feed.micro.per_epoch),
        resume_command=_resume_command(request, directory),
        tensorboard=TensorBoard(directory.path / "tensorboard") if spec.train.tensorboard else None,
    )
    path = fit(run)
    with state.averaged():
        _show_sample(spec, data, model, device)
        if isinstance(task, MaskedImage):
            picture, split = directory.path / "rebuilt.png", "val" if "val" in data.splits else "train"
            draw_reconstructions(model, task, data.split(split), data.facts, device, picture)
            say(f"rebuilt images: {picture}")
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
        text = "".join(stream_text(model, load_tokenizer(data.assets()), prompt, decoding, device))
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


def _describe_start(model: Module, data: DataSet, feed: Feed) -> None:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count = sum(p.numel() for p in model.parameters())
    frozen = f", {count - trainable:,} of them frozen" if trainable < count else ""
    say(f"model: {count:,} parameters{frozen}; data: {len(feed.micro.split):,} training samples")


def _contents(spec: Spec, data: DataSet, state: TrainState) -> checkpoints.Contents:
    weights, tensors, values = state.capture()
    return checkpoints.Contents(
        step=state.step,
        model=weights,
        train=tensors,
        state={**values, "fingerprint": data.fingerprint, "torch": torch.__version__},
        spec=spec.to_dict(),
        facts=data.facts.to_json(),
        assets=data.assets(),
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
