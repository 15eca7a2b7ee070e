"""Whether a teacher answers before a run's first step, and when."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.lazy import torch
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.answering import answered
from bigmodel_cli.train.batches import micro_batches
from bigmodel_cli.train.foreseeing import check_weights
from bigmodel_cli.train.resumed_spec import Previous
from bigmodel_cli.train.room import check_enough
from bigmodel_cli.train.setup import Opened


def taught_once(
    opened: Opened,
    task: Task,
    device: torch.device,
    folder: Path,
    previous: Previous | None,
) -> Opened:
    """The run, with a teacher's answers in its data where that answers once and steps are left.

    They are kept in a file of its folder.
    """
    spec, split = opened.spec, opened.data.split("train")
    if spec.distill is None or not spec.distill.once:
        return opened
    check_enough(spec, split)
    student = check_weights(opened, task, folder)
    assert student is not None
    total = spec.train.total_steps(micro_batches(split, spec.train).per_epoch)
    done = previous.contents.step if previous is not None and previous.contents is not None else 0
    if total is not None and done >= total:
        return opened
    return answered(opened, task, student, device, folder)
