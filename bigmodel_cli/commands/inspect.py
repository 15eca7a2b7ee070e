"""`bigmodel bench`."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

import typer

from bigmodel_cli.commands.comparing import ComparingOptions
from bigmodel_cli.commands.fields import fields_as_options
from bigmodel_cli.commands.learning import LearningOptions
from bigmodel_cli.commands.planning import PlanningOptions
from bigmodel_cli.commands.shared import (
    Device,
    Json,
    Plugin,
    Set,
    collect_overrides,
    print_result,
)
from bigmodel_cli.commands.timing import TimingOptions

PLANNED = ("--roof", "--precision", "--compile", "--batch")
"""Options of timing that a plan heeds."""
TARGETS = (
    "Specs or checkpoints, the first being what others are compared with; a built-in set when left"
    " out."
)


def _unplanned(timing: TimingOptions, comparing: ComparingOptions) -> dict[str, object]:
    """The options that have no effect on a plan, as they are given."""
    every = {**vars(timing), **vars(comparing)}
    named = {f"--{name.replace('_', '-')}": value for name, value in every.items()}
    return {name: value for name, value in named.items() if name not in PLANNED}


@fields_as_options
def bench(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SPEC|CKPT",
            help=TARGETS,
        ),
    ] = None,
    set_: Set = None,
    plugin: Plugin = None,
    device: Device = "auto",
    json: Json = False,
    *,
    timing: TimingOptions,
    comparing: ComparingOptions,
    learning: LearningOptions,
    planning: PlanningOptions,
) -> None:
    """Time training steps or other work: median, p95, rate, memory, FLOPs, and their share of the
    machine's limit.

    Example: bigmodel bench sample_configs/mnist_cnn.yaml --device cpu, or: bigmodel bench a.yaml
    b.yaml runs/c --doing generation
    """
    from bigmodel_cli.bench import bench as measure
    from bigmodel_cli.bench import compared, to_text
    from bigmodel_cli.bench.saved import read

    learning.check()
    if planning.plan:
        unused = _unplanned(timing, comparing) | {"--learn": learning.learn}
        planning.run(targets or (), timing.changes(set_), device, json, timing.roof, unused)
        return
    if learning.learn:
        files = {"--out": comparing.out, "--png": comparing.png, "--csv": comparing.csv}
        others = {
            **{f"--{name}": value for name, value in vars(timing).items() if name != "precision"},
            "--against": comparing.against,
            "--fail-above": comparing.fail_above,
            "--show": comparing.show,
        }
        changes = collect_overrides(set_, timing.precision)
        learning.run(targets or (), changes, device, json, files, others)
        return
    comparing.check(targets or (), one=len(targets or ()) == 1 and not timing.several)
    if comparing.show:
        result = compared([(path.name, read(path)) for path in comparing.show])
        comparing.save(result)
    else:
        saved = comparing.saved
        before = None if saved is None else read(saved)
        with comparing.earlier(targets or (), plugin) as (named, plugins):
            request = timing.request(named, set_, device, sys.argv[1:])
            result = measure(replace(request, plugins=plugins))
        comparing.save(result)
        if saved is not None and before is not None:
            result = compared([(saved.name, before), ("now", result)])
    print_result(result.to_json() if json else to_text(result))
    comparing.fail(result)
