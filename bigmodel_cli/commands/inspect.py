"""`bigmodel bench`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bigmodel_cli.commands.comparing import ComparingOptions
from bigmodel_cli.commands.fields import fields_as_options
from bigmodel_cli.commands.shared import (
    Device,
    Json,
    Plugin,
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
    doing: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help=(
                "What is timed: training, inference, generation, evaluation or data (loading"
                " alone); several as --doing training,inference. [default: training]"
            ),
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help=(
                "Samples at once, e.g. --batch 64; auto finds the largest that fits. Left out: as"
                " the spec says; of generation 1 and 16."
            ),
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help=(
                "Time each value of an option (of several, each combination), e.g. --sweep"
                " train.batch_size=16,64."
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
    precision: Annotated[
        str | None,
        typer.Option(
            help=(
                "auto, fp32, bf16 or fp16, e.g. --precision bf16, the same as --set"
                " train.precision=bf16; all: each of the last three."
            ),
        ),
    ] = None,
    compile_: Annotated[
        str | None,
        typer.Option(
            "--compile",
            metavar="on|off|both",
            help="The same as --set train.compile=on, e.g. --compile both.",
        ),
    ] = None,
    roof: Annotated[
        bool,
        typer.Option("--roof", help="Measure the machine's peaks anew; else once a day."),
    ] = False,
    json: Json = False,
    *,
    comparing: ComparingOptions,
) -> None:
    """Time training steps or other work: median, p95, rate, memory, FLOPs, and their share of the
    machine's limit.

    Example: bigmodel bench sample_configs/mnist_cnn.yaml --device cpu, or: bigmodel bench a.yaml
    b.yaml runs/c --doing generation
    """
    from bigmodel_cli.bench import Request, compared, to_text
    from bigmodel_cli.bench import bench as measure
    from bigmodel_cli.bench.saved import read
    from bigmodel_cli.device import PRECISIONS
    from bigmodel_cli.overrides import Override

    variants = bool(sweep) or precision == "all" or compile_ == "both"
    comparing.check(targets or (), one=len(targets or ()) == 1 and not variants)
    if comparing.show:
        result = compared([read(path) for path in comparing.show])
        comparing.save(result)
    else:
        before = None if comparing.against is None else read(comparing.against)
        sweeps = list(sweep or [])
        if precision == "all":
            precision, sweeps = None, [*sweeps, f"train.precision={','.join(PRECISIONS)}"]
        if compile_ == "both":
            sweeps.append("train.compile=off,on")
        changes = collect_overrides(set_, precision)
        if compile_ not in (None, "both"):
            changes.append(Override("train.compile", compile_, "--compile"))
        request = Request(
            targets or (),
            changes,
            device,
            seconds,
            [name.strip() for text in doing or ["training"] for name in text.split(",")],
            sys.argv[1:],
            batch=batch,
            sweeps=sweeps,
            roof=roof,
        )
        result = measure(request)
        comparing.save(result)
        if before is not None:
            result = compared([before, result])
    print_result(result.to_json() if json else to_text(result))
    comparing.fail(result)
