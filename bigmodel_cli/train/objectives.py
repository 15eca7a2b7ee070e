"""Which objective a spec asks for."""

from __future__ import annotations

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import OptionError
from bigmodel_cli.lazy import torch
from bigmodel_cli.models import Model
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.distillation import Distillation, Recalled
from bigmodel_cli.train.objective import Consistency, Objective, fuses
from bigmodel_cli.train.teachers import open_teacher, say_teacher


def objective_of(
    spec: Spec,
    task: Task,
    info: DatasetInfo,
    assets: dict[str, bytes],
    model: Model,
    device: torch.device,
) -> Objective:
    """What the run minimises; a teacher that answers once has done so (`answering.answered`).

    Raises `SpecError` where the teacher cannot teach this student.
    """
    with spec.placing():
        check_objective(spec, task)
    options, consistency = spec.distill, spec.train.consistency
    if options is None:
        chunk = spec.train.loss_chunk
        if consistency is None:
            return Objective(task, chunk, fuses(spec.train, device))
        return Consistency(task, consistency, chunk)
    if options.once:
        return Recalled(task, options, model, spec.train.loss_chunk)
    teacher = open_teacher(options, spec, task, info, assets, model, device)
    say_teacher(teacher, options, model)
    return Distillation(task, teacher, options, model, spec.train.loss_chunk)


def check_objective(spec: Spec, task: Task) -> None:
    """Raise `SpecError` where the task has nothing that a teacher or a second pass could tell."""
    options, consistency = spec.distill, spec.train.consistency
    if consistency is not None and options is not None:
        raise OptionError(
            ("train.consistency", "it has no effect beside distill; leave one of them out")
        )
    if consistency is not None and not task.teachable:
        what = "has no probabilities that two passes could differ in; leave it out"
        raise OptionError(("train.consistency", f"task.type: {task.name} {what}"))
    if options is not None and not task.teachable:
        what = "has no probabilities to learn from a teacher"
        raise OptionError(("distill", f"task.type: {task.name} {what}"))
