"""Options and arguments that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# Typer evaluates these at run time: Optional, not `X | None`, reads well in its help.
SpecPath = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(
        metavar="SPEC",
        help="The spec, a YAML file; left out with --resume --out RUN.",
        show_default=False,
    ),
]
TaskSpec = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(
        metavar="SPEC",
        help="A spec; sections left out come from the checkpoint.",
        show_default=False,
    ),
]
Source = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--from",
        metavar="CKPT",
        help=(
            "The checkpoint to start from; '-' reads the path from stdin. Left out with --resume"
            " --out RUN."
        ),
        show_default=False,
    ),
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="A checkpoint or run directory; '-' reads the path from stdin.",
        show_default=False,
    ),
]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override an option by its path, e.g. --set train.steps=100.",
    ),
]


def _name_plugins(paths: Optional[list[Path]]) -> Optional[list[Path]]:  # noqa: UP045
    if paths:
        from bigmodel_cli.plugins import name_plugins

        name_plugins(paths)
    return paths


Plugin = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        "--plugin",
        metavar="FILE",
        help=(
            "Add the parts, tasks, data ... of a Python file of yours, e.g. --plugin my_part.py. It"
            " is run."
        ),
        callback=_name_plugins,
        is_eager=True,
        show_default=False,
    ),
]
PluginFile = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A Python file with parts. It is run.", show_default=False),
]
SetPart = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        metavar="OPTION=VALUE",
        help="An option of the parts to try them with, e.g. --set heads=4.",
    ),
]
Out = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help=(
            "The run's directory, e.g. --out runs/try1. [default: runs/NAME, the first that is"
            " free]"
        ),
        show_default=False,
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run after its last checkpoint, exactly.")
]
AcceptData = Annotated[
    bool,
    typer.Option(
        "--accept-data", help="With --resume: go on though the data has changed; that is recorded."
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help=(
            "auto, cpu, cuda, cuda:N or mps, e.g. --device cuda. auto: CUDA, else MPS, else the"
            " CPU."
        )
    ),
]
Precision = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help=(
            "auto, fp32, bf16 or fp16, e.g. --precision bf16; the same as --set"
            " train.precision=bf16."
        ),
        show_default=False,
    ),
]
Seed = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        help="The run's seed, e.g. --seed 1; the same as --set train.seed=1.", show_default=False
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show shapes, parameters, FLOPs, memory and steps; train nothing."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")
]
