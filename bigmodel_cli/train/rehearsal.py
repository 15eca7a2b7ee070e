"""`--dry-run`: what a training would do, without training or writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bigmodel_cli.assemble import check_memory
from bigmodel_cli.console import say
from bigmodel_cli.device import pick_device
from bigmodel_cli.lazy import load_torch
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.batches import micro_batches
from bigmodel_cli.train.foreseeing import check_weights
from bigmodel_cli.train.plan import Plan, plan, without_collection
from bigmodel_cli.train.remarks import say_length
from bigmodel_cli.train.room import check_enough, check_fits, check_listed
from bigmodel_cli.train.setup import Opened, open_run, open_task
from bigmodel_cli.train.step import batch_norm_explained


def rehearsed(spec: Spec) -> Opened:
    """What a training of the spec opens. Raises what its start would, the device's part aside."""
    load_torch()
    opened = open_run(spec, expect=True)
    spec, data, split = opened.spec, opened.data, opened.data.split("train")
    for tracker in spec.train.trackers:
        tracker.check()
    task = open_task(spec, data, first=True)
    check_weights(opened, task, Path("runs"))
    if len(split):
        check_enough(spec, split)
    return opened


def dry_run(spec: Spec, device: str, show: Callable[[Plan], None] = lambda plan: None) -> Plan:
    """What `train` would do, without training or writing; shown even if it does not fit the
    device.
    """
    load_torch()
    chosen = pick_device(device, say)
    opened = rehearsed(spec)
    spec, data, split = opened.spec, opened.data, opened.data.split("train")
    with without_collection(), batch_norm_explained():
        outlined = check_memory(spec, data.info, chosen)
        found = plan(spec, data.info, split, outlined)
    per_epoch = micro_batches(split, spec.train).per_epoch if len(split) else None
    say_length(spec, found.steps, per_epoch)
    show(found)
    check_fits(spec, chosen, found.memory, max(split.longest_rows(), default=1))
    check_listed(spec, outlined)
    return found
