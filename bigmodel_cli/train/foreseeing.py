"""What a run would refuse at its start, found by names and shapes of weights that are not read."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.assemble import build_on_meta, check_start, reference_source
from bigmodel_cli.models import Model
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.answering import check_once
from bigmodel_cli.train.held import check_held
from bigmodel_cli.train.objectives import check_objective
from bigmodel_cli.train.setup import Opened
from bigmodel_cli.train.teachers import open_teacher, say_teacher


def check_weights(opened: Opened, task: Task, folder: Path) -> Model | None:
    """Raise what the start of a run in this folder would, of the checkpoint that it begins with,
    the adapter and the teacher. The model without storage, where they ask for one.
    """
    spec, data = opened.spec, opened.data
    if task.needs_reference:
        reference_source(spec)
    if spec.adapter is not None:
        check_held(spec.adapter, started=opened.source is not None)
    with spec.placing():
        check_objective(spec, task)
    if opened.source is not None:
        model = check_start(spec, data.info, opened.source)
    elif spec.distill is not None or spec.train.consistency is not None:
        model = build_on_meta(spec, data.info)
    else:
        return None
    options = spec.distill
    if options is not None:
        teacher = open_teacher(options, spec, task, data.info, data.assets(), model, None)
        say_teacher(teacher, options, model)
        if options.once:
            with spec.placing():
                check_once(teacher, task, data, model, options.hidden > 0, folder)
    return model
