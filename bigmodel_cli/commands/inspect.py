"""`bigmodel bench`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bigmodel_cli.commands.comparing import ComparingOptions
from bigmodel_cli.commands.fields import fields_as_options
from bigmodel_cli.commands.learning import LearningOptions
from bigmodel_cli.commands.shared import (
    Device,
    Json,
    Plugin,
    Precision,
    Set,
    collect_overrides,
    print_result,
)


@fields_as_options
def bench(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SPEC|CKPT ...",
            help=(
                "Specs or checkpoints, the first being what others are compared with; a built-in"
                " set when left out."
            ),
        ),
    ] = None,
    set_: Set = None,
    plugin: Plugin = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help=(
                "How long each network is timed, e.g. --seconds 10; 5 alone, and of several at most"
                " 20 each, until it is sure which is faster."
            ),
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    json: Json = False,
    *,
    comparing: ComparingOptions,
    learning: LearningOptions,
) -> None:
    """Time training steps: median, p95, rate, memory, FLOPs, and their share of the machine's
    limit.

    Example: bigmodel bench sample_configs/mnist_cnn.yaml --device cpu, or: bigmodel bench a.yaml
    b.yaml runs/c
    """
    from bigmodel_cli.bench import Request, compared, to_text
    from bigmodel_cli.bench import bench as measure
    from bigmodel_cli.bench.saved import read

    learning.check()
    if learning.learn:
        files = {"--out": comparing.out, "--png": comparing.png, "--csv": comparing.csv}
        others = {
            "--seconds": seconds,
            "--against": comparing.against,
            "--fail-above": comparing.fail_above,
            "--show": comparing.show,
        }
        changes = collect_overrides(set_, precision)
        learning.run(targets or (), changes, device, json, files, others)
        return
    comparing.check(targets or ())
    if comparing.show:
        result = compared([read(path) for path in comparing.show])
        comparing.save(result)
    else:
        before = None if comparing.against is None else read(comparing.against)
        changes = collect_overrides(set_, precision)
        request = Request(targets or (), changes, device, seconds, command=sys.argv[1:])
        result = measure(request)
        comparing.save(result)
        if before is not None:
            result = compared([before, result])
    print_result(result.to_json() if json else to_text(result))
    comparing.fail(result)
