"""The teacher of a run: opened, and checked against the student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import listed, say
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.data.files import expand
from bigmodel_cli.errors import OptionError
from bigmodel_cli.lazy import torch
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.models import Model
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import Task
from bigmodel_cli.teacher_options import DistillOptions
from bigmodel_cli.train.distillation import compared

MOST = 12
"""Most layers that are listed."""


def open_teacher(
    options: DistillOptions,
    spec: Spec,
    task: Task,
    info: DatasetInfo,
    assets: Mapping[str, bytes],
    student: Model,
    device: torch.device | None,
) -> Loaded:
    """The teacher on this device, reported; None: without storage, unread and unreported.

    Raises `SpecError` where it cannot teach this student.
    """
    teacher = load_checkpoint(
        expand(options.teacher, Path(), "distill.teacher"),
        "cpu" if device is None else str(device),
        tell=lambda _: None,
        read=device is not None,
    )
    with spec.placing():
        _check(teacher, task, info, assets)
        if options.hidden:
            _check_streams(teacher, spec, student)
    return teacher


def say_teacher(teacher: Loaded, options: DistillOptions, student: Model) -> None:
    """Report what teaches, and which streams are compared."""
    parameters = sum(p.numel() for p in teacher.model.parameters())
    said = f"teacher: {teacher.path}, {parameters:,} parameters"
    if options.hidden:
        deep = len(teacher.model.stream_layers())
        layers = compared(deep, len(student.stream_layers()))
        said += (
            f"; the streams after its layers {listed([str(i) for i in layers], MOST)} of {deep} are"
            " compared with those after the model's"
        )
    say(said)


def _check(teacher: Loaded, task: Task, info: DatasetInfo, assets: Mapping[str, bytes]) -> None:
    """Raise `OptionError` where teacher and student do not answer the same question."""
    place = str(teacher.path)
    if teacher.spec.task.head() != task.name:
        raise OptionError(
            (
                "distill.teacher",
                f"{place} was trained for {teacher.task.name}, and the task is {task.name}",
            )
        )
    theirs = teacher.info
    if theirs.classes != info.classes:
        raise OptionError(
            (
                "distill.teacher",
                f"{place} tells {', '.join(theirs.classes[:5])} apart, in this order, and the data"
                f" has {', '.join(info.classes[:5])}; classes must be the same",
            )
        )
    if teacher.assets.get(TOKENIZER) != assets.get(TOKENIZER):
        raise OptionError(
            (
                "distill.teacher",
                f"{place} has another tokenizer, so that its probabilities are of other tokens;"
                " train with its own: data.tokenizer: {type: file, path:"
                f" {teacher.path / TOKENIZER}}}",
            )
        )
    if (theirs.image_shape, theirs.mean, theirs.std) != (info.image_shape, info.mean, info.std):
        raise OptionError(
            (
                "distill.teacher",
                f"{place} reads images of {theirs.image_shape} with mean {theirs.mean} and"
                f" deviation {theirs.std}, and the data has {info.image_shape}, {info.mean},"
                f" {info.std}; give data.size and data.normalize",
            )
        )


def _check_streams(teacher: Loaded, spec: Spec, student: Model) -> None:
    """Raise `OptionError` where residual streams cannot be compared."""
    counts = [len(model.stream_layers()) for model in (teacher.model, student)]
    if not all(counts):
        raise OptionError(
            ("distill.hidden", "it compares residual streams, and a model has no blocks")
        )
    if counts[0] < counts[1]:
        raise OptionError(
            (
                "distill.hidden",
                f"the teacher has {counts[0]} blocks, fewer than the student's {counts[1]}",
            )
        )
    widths = [options.width() for options in (teacher.spec.model, spec.model)]
    if widths[0] != widths[1]:
        raise OptionError(
            (
                "distill.hidden",
                f"the teacher's stream is {widths[0]} wide and the student's"
                f" {widths[1]}; set it to 0, or model.dim to {widths[0]}",
            )
        )
