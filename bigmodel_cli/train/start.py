"""What a run starts from: whether model, data and task fit one another, and the first weights, drawn or a checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.config import Facts
from bigmodel_cli.console import say
from bigmodel_cli.data import DataSet
from bigmodel_cli.data.files import expand
from bigmodel_cli.device import total_memory
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.lazy import torch
from bigmodel_cli.loaded import not_finite
from bigmodel_cli.metrics.text import need_libraries
from bigmodel_cli.models import Model, within
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.spec import Spec, build_model, of_checkpoint
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.frozen import freeze
from bigmodel_cli.train.memory import build_within, check_memory, state_bytes


def check_task(spec: Spec, task: Task, data: DataSet) -> None:
    """Raise `SpecError` where the data lacks what the task reads, the model is not made for it, or a library is missing."""
    task.check(spec.model, data.facts, data.names(), spec.data.type)
    if spec.train.patience is not None and "val" not in data.splits:
        raise SpecError(
            "train.patience: there is no validation by which to stop; name validation data, or leave data.val_fraction out "
            "to hold out a tenth of the training data"
        )
    train = spec.train
    validates = train.validate_every is not None or train.validate_epochs is not None
    if train.patience is not None and not validates:
        raise SpecError(
            "train.patience: it counts validations, and there is one alone, at the end; give train.validate_every"
        )
    if train.average_last is not None and train.average_last > 1 and not (validates or train.checkpoint_every):
        raise SpecError(
            f"train.average_last: {train.average_last} checkpoints, and one alone is saved, at the end; give "
            "train.checkpoint_every"
        )
    if train.rewind is not None and not (validates or train.checkpoint_every):
        raise SpecError(
            "train.rewind: it goes back to the last checkpoint, and one alone is saved, at the end; give train.checkpoint_every"
        )
    if train.batch_tokens is not None and train.batch_size != TrainOptions.model_fields["batch_size"].default:
        say(
            f"train.batch_size: {train.batch_size} is not read, since train.batch_tokens: {train.batch_tokens} fills the batches; "
            "set that to null for batches of so many samples"
        )
    need_libraries(task.validation_text_metrics)


def build_started(spec: Spec, facts: Facts, device: torch.device, source: Path | None, resumed: bool = False) -> Model:
    """The model with its first weights: drawn anew, or those of a checkpoint with a new head where the classes differ.

    Where a checkpoint's weights come, at once or (`resumed`) soon, pretrained ones are not fetched.
    """
    if source is not None:
        return _from_checkpoint(spec, facts, device, source)
    model = build_within(_without_download(spec) if resumed else spec, facts, device)
    freeze(model, spec.init)
    return model


def _from_checkpoint(spec: Spec, facts: Facts, device: torch.device, source: Path) -> Model:
    contents = checkpoints.read(source, train_state=False)
    if note := not_finite(contents.model.stream()):
        raise CheckpointError(f"{source}: {note}; nothing can be learnt from there: start from another checkpoint")
    with within(contents.model, facts.outputs):
        model = build_model(_without_download(spec), facts)
    if state_bytes(spec, model.parameters()) > total_memory(device):
        check_memory(spec, facts, device)
    before = Facts.from_json(contents.facts)
    task_differs = contents.spec["task"].get("type") != spec.task.type
    what = "classes" if before.classes != facts.classes else "targets" if before.targets != facts.targets else ""
    other = f"{what} differ" if what else "task differs" if task_differs else ""
    try:
        report = checkpoints.load_weights(model, contents.model, fresh=model.output_layers() if other else ())
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {_of_another_model(spec, contents.spec)}{error}") from None
    say(f"weights: {len(report.loaded)} tensors from {source}")
    if report.fresh:
        say(f"newly initialised, since the {other}: {', '.join(report.fresh)}")
    if report.ignored:
        say(f"ignored of the checkpoint: {', '.join(report.ignored)}")
    freeze(model, spec.init)
    return model


def _of_another_model(spec: Spec, before: Mapping[str, Any]) -> str:
    """A sentence about a spec whose model is not the checkpoint's, or ''."""
    options = spec.to_dict()["model"]
    old = before["model"]
    changed = [name for name in options if name != "classes" and options[name] != old.get(name)]
    if options["type"] != old.get("type"):
        return f"a model of type {old.get('type')}, and the spec's is {options['type']}; "
    if not changed:
        return ""
    names = ", ".join(f"model.{name}" for name in changed[:3])
    return f"the spec's model differs in {names}; leave it out to take the checkpoint's; "


def _without_download(spec: Spec) -> Spec:
    return spec.model_copy(update={"model": spec.model.without_download()})


def with_length(spec: Spec) -> Spec:
    """The spec with the length of the checkpoint that it starts from, where that is longer than the new data's context.

    A finetuning whose `model.max_len` is open keeps all positions: a table of learned ones has that many rows.
    """
    if spec.init.checkpoint is None:
        return spec
    source = checkpoints.find(expand(spec.init.checkpoint, Path(), "init.checkpoint"))
    before = of_checkpoint(checkpoints.read_spec(source), source)
    length = before.model.longest() or before.data.longest() or 0
    if length <= (spec.data.longest() or length):
        return spec
    return spec.model_copy(update={"model": spec.model.with_longest(length)})
