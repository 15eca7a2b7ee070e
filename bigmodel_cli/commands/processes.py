"""`--processes N`: a command in several processes, which this one starts and waits for."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from bigmodel_cli.console import say
from bigmodel_cli.errors import SpecError

Processes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help=(
            "Train in N processes of this machine, each on a GPU or on its share of the CPU's"
            " cores; the same batches and result. Several machines: torchrun."
        ),
    ),
]
Restarts = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="With --processes: go on from the last checkpoint, up to N times, where one is lost.",
    ),
]


def check_processes(processes: int | None, restarts: int, refused: dict[str, object]) -> None:
    """Raise `SpecError` where the options do not go together."""
    from bigmodel_cli.distributed import announced

    several = not announced().alone
    if processes is None and restarts:
        raise SpecError("--restarts has no effect without --processes")
    if several and processes is not None:
        raise SpecError("--processes: torchrun has started the processes already; leave it out")
    if (several or processes is not None) and (given := [n for n, v in refused.items() if v]):
        raise SpecError(f"{given[0]} is not for several processes; leave it or them out")


def start_processes(processes: int, restarts: int, source: str | None = None) -> None:
    """Run this command line in so many processes and leave with their status; `source` is what
    --from names, where it came on stdin.
    """
    from bigmodel_cli.distributed.launch import launch, without

    words = without(sys.argv[1:], ("--processes", "--restarts"))
    if source is not None:
        words = [*without(words, ("--from",)), "--from", os.fspath(source)]
    raise SystemExit(launch(words, processes, restarts, say))
