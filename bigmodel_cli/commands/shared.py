"""Options that several commands take, and what the commands do with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.console import result, result_json, say
from bigmodel_cli.errors import SpecError

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change

A_CHECKPOINT = typer.Argument(
    metavar="CKPT",
    help=(
        "A checkpoint or run, a folder of Hugging Face's, a file of torchvision's, or"
        " hf://org/name; '-' reads the path from stdin."
    ),
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
            "Run a Python file of yours and use its parts, tasks, data sources ..., e.g. --plugin"
            " my_part.py."
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
    given = [name for name, value in options.items() if value]
    if given:
        raise SpecError(f"{given[0]} has no effect on {where}; leave it out")


def resolve_checkpoint(text: str, with_inputs: bool = False) -> Path:
    """The checkpoint's path; '-' reads it from the first line of stdin.

    The lines after it are the command's inputs, or else other checkpoints (of --seeds), which are
    reported as left out. Raises `SpecError`.
    """
    if text != "-":
        return Path(text)
    line = os.fsdecode(sys.stdin.buffer.readline().strip())  # what follows it stays for `predict`
    if not line:
        raise SpecError(
            "'-': no checkpoint's path came on stdin; did the command before the pipe fail?"
        )
    if (
        not with_inputs
        and not sys.stdin.isatty()
        and (rest := sys.stdin.buffer.read().strip().splitlines())
    ):
        say(
            f"note: '-' is the first line of stdin; {len(rest)} more are left out (| xargs -n 1"
            " takes each by itself)"
        )
    return Path(line)


def all_of_stdin(names: list[str]) -> list[str]:
    """The names, where '-' stands for the lines of stdin, at least one.

    Raises `SpecError`.
    """
    if "-" not in names:
        return names
    lines = [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line.strip()]
    return [
        name for given in names for name in (with_a_first(iter(lines)) if given == "-" else [given])
    ]


def with_a_first(lines: Iterator[str]) -> Iterator[str]:
    """The lines of stdin.

    Raises `SpecError` where there is none.
    """
    first = next(lines, None)
    if first is None:
        raise SpecError(
            "no input is named, and stdin is empty; give inputs as arguments, or one on each line"
            " of stdin"
        )
    return chain([first], lines)


def print_result(values: dict[str, Any] | str) -> None:
    """Print a command's result: text, or one JSON object."""
    if isinstance(values, str):
        result(values)
    else:
        result_json(values)
