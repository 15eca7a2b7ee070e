"""Options that several commands take, and what the commands do with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change

A_CHECKPOINT = typer.Argument(
    metavar="CKPT", help="A checkpoint or run directory; '-' reads the path from stdin."
)
Checkpoint = Annotated[str, A_CHECKPOINT]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override an option by its path, e.g. --set train.steps=100.",
    ),
]


def _name_plugins(paths: list[Path] | None) -> list[Path] | None:
    if paths:
        from bigmodel_cli.plugins import name_plugins

        name_plugins(paths)
    return paths


Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help=(
            "Add the parts, tasks, data ... of a Python file of yours, e.g. --plugin my_part.py. It"
            " is run."
        ),
        callback=_name_plugins,
        is_eager=True,
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
    str | None,
    typer.Option(
        help=(
            "auto, fp32, bf16 or fp16, e.g. --precision bf16; the same as --set"
            " train.precision=bf16."
        ),
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")
]


def collect_overrides(
    values: list[str] | None, precision: str | None = None, seed: int | None = None
) -> list[Change]:
    """The --set overrides, with --precision and --seed as the overrides that they abbreviate."""
    from bigmodel_cli.overrides import Override

    named = (("precision", precision), ("seed", seed))
    return [
        *(values or []),
        *(Override(f"train.{n}", v, f"--{n}") for n, v in named if v is not None),
    ]


def refuse(where: str, options: Mapping[str, object]) -> None:
    """Raise `SpecError` for an option that is given where it has no effect."""
    from bigmodel_cli.errors import SpecError

    given = [name for name, value in options.items() if value]
    if given:
        raise SpecError(f"{given[0]} has no effect on {where}; leave it out")


def print_result(values: dict[str, Any] | str) -> None:
    """Print a command's result: text, or one JSON object."""
    from bigmodel_cli.console import result, result_json

    if isinstance(values, str):
        result(values)
    else:
        result_json(values)
