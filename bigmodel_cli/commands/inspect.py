"""`bigmodel attend` and `bigmodel bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.shared import (
    Checkpoint,
    Device,
    Json,
    Plugin,
    Precision,
    Set,
    collect_overrides,
    print_result,
    resolve_checkpoint,
)


def attend(
    checkpoint: Checkpoint,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A text, or an image's path.")],
    layer: Annotated[
        int | None,
        typer.Option(
            help=(
                "The layer shown, e.g. --layer 0. [default: the last in the terminal, all in the"
                " picture]"
            ),
        ),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(
            help=(
                "The head shown, e.g. --head 2. [default: the mean of all in the terminal, each in"
                " the picture]"
            ),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The picture, e.g. --out heads.png or heads.pdf. [default: attend.png]"),
    ] = None,
    device: Device = "auto",
    json: Json = False,
    plugin: Plugin = None,
) -> None:
    """Show a decoder's attention, or the image region that decides a class; prints the picture's
    path.

    Example: bigmodel attend runs/quickstart "def main(argv):"
    """
    from bigmodel_cli.attend import attend as look
    from bigmodel_cli.console import has_colour, result, result_json, say_coloured
    from bigmodel_cli.loaded import load_checkpoint

    loaded = load_checkpoint(resolve_checkpoint(checkpoint), device)
    seen = look(loaded, source, out, layer, head, has_colour(sys.stderr))
    say_coloured(seen.text)
    if json:
        result_json({"picture": str(seen.picture), **seen.values})
    else:
        result(str(seen.picture))


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
        float, typer.Option(min=0.1, help="How long each network is timed, e.g. --seconds 10.")
    ] = 5.0,
    device: Device = "auto",
    precision: Precision = None,
    json: Json = False,
) -> None:
    """Time training steps: median, p95, rate, memory, FLOPs, and their share of the machine's
    limit.

    Example: bigmodel bench sample_configs/mnist_cnn.yaml --device cpu, or: bigmodel bench a.yaml
    b.yaml runs/c
    """
    from bigmodel_cli.bench import bench as measure
    from bigmodel_cli.bench.targets import builtin, named

    overrides = collect_overrides(set_, precision)
    report = measure(named(targets, overrides) if targets else builtin(overrides), device, seconds)
    print_result(report.to_json() if json else report.to_text())
