"""What a run would refuse at its start, found by names and shapes of weights that are not read."""

from __future__ import annotations

from bigmodel_cli.assemble import build_on_meta, check_start, reference_source
from bigmodel_cli.lazy import torch
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.held import check_held
from bigmodel_cli.train.objective import objective_of
from bigmodel_cli.train.setup import Opened


def check_weights(opened: Opened, task: Task) -> None:
    """Raise what the start of the run would, of the checkpoint that it begins with, the adapter and
    the teacher.
    """
    spec, data = opened.spec, opened.data
    if task.needs_reference:
        reference_source(spec)
    if spec.adapter is not None:
        check_held(spec.adapter, started=opened.source is not None)
    if opened.source is not None:
        model = check_start(spec, data.info, opened.source)
    elif spec.distill is not None or spec.train.consistency is not None:
        model = build_on_meta(spec, data.info)
    else:
        return
    objective_of(spec, task, data.info, data.assets(), model, torch.device("meta"), read=False)
