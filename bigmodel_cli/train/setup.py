"""Setting up a run, for training, a dry run and `bench`: data and task checked, state at step 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli import distributed
from bigmodel_cli.adapters import four_bit_names
from bigmodel_cli.adapting import with_files_read
from bigmodel_cli.assemble import Later, build_on_meta, source_of
from bigmodel_cli.console import say
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.assets import carried
from bigmodel_cli.data import (
    FACTS,
    TOKENIZERS,
    DataSet,
    open_data,
    open_or_expect,
    with_replay,
)
from bigmodel_cli.data.base import info_of
from bigmodel_cli.data.files import expand
from bigmodel_cli.depths import rated
from bigmodel_cli.errors import MissingData, SpecError
from bigmodel_cli.frozen import still_modules
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import say_carried
from bigmodel_cli.metrics.text import need_libraries
from bigmodel_cli.models import Model
from bigmodel_cli.modes import training_mode
from bigmodel_cli.promises import check_plugins
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights, without_numbers
from bigmodel_cli.sharding import WHOLE, Mesh, Sharding
from bigmodel_cli.spec import Spec, load, of_checkpoint
from bigmodel_cli.tasks import Task, build_task
from bigmodel_cli.tensor_parallel import TensorParallel
from bigmodel_cli.train.autotune import apply_mode, choose
from bigmodel_cli.train.divided import say_whole, unmeasured
from bigmodel_cli.train.first import say_first
from bigmodel_cli.train.smaller import Division, fitted
from bigmodel_cli.train.state import LossScale, TrainState

SPARE = 2
"""Rows of a batch that counts for nothing: batch normalisation has values of more than one."""


@dataclass(frozen=True)
class Opened:
    """A run's spec, its data, and the checkpoint that it is initialised from, if any.

    `carried` are that checkpoint's assets which the run's own keep.
    """

    spec: Spec
    data: DataSet
    source: Path | None
    carried: dict[str, bytes]


def open_run(spec: Spec, resumed: Path | None = None, *, expect: bool = False) -> Opened:
    """Open the data of a run, with the tokenizer and normalisation of its checkpoint.

    That is its own (`resumed`) or that of `spec.init`. With `expect`, what the spec says of missing
    data replaces it.
    """
    check_plugins(spec)
    source = source_of(spec) if resumed is None else None
    if source is not None:
        spec = _with_length(spec, source)
        say_carried(spec, opening.read_spec(source), TOKENIZERS)
    kept = resumed or source
    assets = opening.read_assets(kept) if kept is not None else None
    if expect:
        data = open_or_expect(spec.data, say=say, assets=assets)
    else:
        data = open_data(spec.data, base=Path(), say=say, assets=assets)
    if resumed is not None and (began := info_of(assets)) is not None:
        data = data.scaled_as(began)
    if spec.data.replay is not None:
        data = _with_replay(spec, data, expect=expect)
    spec = with_files_read(spec, data.info, build_on_meta)
    return Opened(spec, data, source, carried(assets or {}))


def _with_replay(spec: Spec, data: DataSet, *, expect: bool) -> DataSet:
    """The data with that of `data.replay` among it, tokenized, normalised and labelled alike."""
    assert spec.data.replay is not None
    if data.missing:
        return data
    named, share = spec.data.replay.spec or spec.init.checkpoint, spec.data.replay.share
    if named is None:
        raise SpecError(
            "data.replay: there is no initial checkpoint whose data could be replayed; name a spec"
            " with data.replay.spec"
        )
    path = expand(named, Path(), "data.replay.spec")
    if path.suffix in (".yaml", ".yml"):
        options = load(path).data
    else:
        found = opening.find(path)
        options = of_checkpoint(opening.read_spec(found), found).data
    known = {**data.assets(), FACTS: json.dumps(data.info.to_json()).encode()}
    try:
        before = open_data(options, base=Path(), say=say, assets=known, only="train")
    except SpecError as error:
        raise SpecError(f"data.replay: {path}, read as the new data is: {error}") from None
    except MissingData as missing:
        if not expect:
            raise
        say(f"data.replay: left out of this plan: {missing}")
        return data
    mixed = with_replay(data, before, share)
    count, added = len(mixed.split("train")), len(data.split("train"))
    say(f"replay: {count - added:,} of {count:,} training items an epoch are of {path}")
    return mixed


def _with_length(spec: Spec, source: Path) -> Spec:
    """The spec with the initial checkpoint's length, where that is longer than the data's context.

    So a finetuning without `model.max_len` keeps all rows of a table of learned positions.
    """
    before = of_checkpoint(opening.read_spec(source), source)
    length = before.model.longest() or before.data.longest() or 0
    if length <= (spec.data.longest() or length):
        return spec
    return spec.model_copy(update={"model": spec.model.with_longest(length)})


def open_task(spec: Spec, data: DataSet, *, first: bool = False) -> Task:
    """The checked task; its notes are reported, and with `first` what is learnt of a sample.

    Raises `SpecError` where the data lacks what the task reads, the model is not made for it, or a
    library is missing.
    """
    task = build_task(spec.task, data.info)
    _check_task(spec, task, data)
    for note in spec.task.notes(data.info):
        say(note)
    if first and not data.missing:
        say_first(task, data, spec.train.seed)
    return task


def _check_task(spec: Spec, task: Task, data: DataSet) -> None:
    task.check(spec.model, data.info, data.names(), spec.data.type)
    if spec.train.patience is not None and "val" not in data.splits:
        raise SpecError(
            "train.patience: there is no validation by which to stop; name validation data, or"
            " leave data.val_fraction out to hold out a tenth of the training data"
        )
    train = spec.train
    validates = train.validate_every is not None or train.validate_epochs is not None
    if train.patience is not None and not validates:
        raise SpecError(
            "train.patience counts validations, and there is only one, at the end; set"
            " train.validate_every"
        )
    if (
        train.average_last is not None
        and train.average_last > 1
        and not (validates or train.checkpoint_every)
    ):
        raise SpecError(
            f"train.average_last: {train.average_last} checkpoints, and only one is saved, at the"
            " end; set train.checkpoint_every"
        )
    if train.rewind is not None and not (validates or train.checkpoint_every):
        raise SpecError(
            "train.rewind goes back to the last checkpoint, and only one is saved, at the end; set"
            " train.checkpoint_every"
        )
    if (
        train.batch_tokens is not None
        and train.batch_size != TrainOptions.model_fields["batch_size"].default
    ):
        say(
            f"train.batch_size: {train.batch_size} is not read, since train.batch_tokens:"
            f" {train.batch_tokens} fills the batches; set that to null for batches of a"
            " number of samples"
        )
    need_libraries(task.validation_text_metrics)


def _measured(
    model: Model,
    task: Task,
    first: Callable[[], dict[str, Tensor]],
    options: TrainOptions,
    division: Division,
) -> TrainOptions:
    """The options without any auto: what the first process measures, so that all compute alike."""
    chosen = {}
    if distributed.world().first:
        found = fitted(
            division,
            0,
            options,
            [first()],
            lambda parts: choose(model, task, parts[0], options, say),
            say,
        )
        chosen = {name: getattr(found, name) for name in ("precision", "memory_format", "compile")}
    chosen, divided = distributed.told([chosen, division.to_json()])
    division.add(divided)
    return options.model_copy(update=chosen)


def prepare(
    spec: Spec,
    model: Model,
    task: Task,
    first: Callable[[], dict[str, Tensor]],
    left_out: frozenset[str] = frozenset(),
    mesh: Mesh = WHOLE,
    device: torch.device | None = None,
    later: Later | None = None,
) -> tuple[Spec, TrainState]:
    """The spec without any auto in `train`, and the state at step 0.

    `first` gives a micro-batch to measure with. The model comes from `assemble`; checkpoints leave
    these weights out. Where the processes of the mesh keep parts of the weights they do so from
    here on, on their `device`; what `later` has to do to the weights is done then.
    """
    still, options, division = still_modules(model, spec.init), spec.train, Division()
    if spec.adapter is not None and options.compile == "auto":
        # compiled, each adapted weight is summed first, which is slower
        options = options.model_copy(update={"compile": "off"})
    training_mode(model, still)
    if options.checkpointing == "blocks":
        model.recompute()
    if mesh.sharded:
        assert device is not None
        options = unmeasured(options, device)
    if "auto" in (options.precision, options.memory_format, options.compile):
        options = _measured(model, task, first, options, division)
    if not mesh.sharded:
        apply_mode(model, options)
    with spec.placing():
        weights = rated(model, named_weights(model), options)
    sharding: Sharding | TensorParallel | None = None
    if mesh.sharded and device is not None:
        if mesh.tensor > 1:
            say_whole(model)
            sharding = TensorParallel(model, mesh.tensor, device)
        else:
            fill = Later(0).fill if later is None else later.fill
            weights = [without_numbers(w) for w in weights]  # whole ones are not to be kept
            sharding = Sharding(model, model.groups(), mesh, device, fill)
            if later is not None and later.load is not None:
                later.load(model, {**sharding.kept(), **dict(model.named_buffers())})
        weights = sharding.weights(weights)
        sharding.spare = {name: tensor[:SPARE] for name, tensor in first().items()}
    state = TrainState(
        model,
        options.optimizer.build(weights),
        options.ema,
        still=still,
        left_out=left_out,
        held=four_bit_names(model),
        loss_scale=LossScale.of(options.precision),
        division=division,
        sharding=sharding,
    )
    return spec.model_copy(update={"train": options}), state
