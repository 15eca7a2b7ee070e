"""`bigmodel runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmodel_cli.commands.shared import Json, all_of_stdin, print_result, refuse


def runs(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIR|RUN",
            help=(
                "Folders that hold runs, runs (also by their name below runs/), or their"
                " checkpoints; '-' reads paths from stdin. [default: runs]"
            ),
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help=(
                "Compare runs: a column for each, with the options that differ, best and last"
                " metrics; and a plot of their curves."
            ),
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=(
                "With --compare: the plot, e.g. --plot curves.pdf; its ending names the format."
                " [default: compare.png]"
            ),
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List runs: state, step, best metric, time, differing options; or compare some and plot
    curves.

    Example: bigmodel runs, or: bigmodel runs --compare mnist_cnn mnist_cnn-2 --plot curves.pdf
    """
    from bigmodel_cli.console import table
    from bigmodel_cli.pictures import check_picture
    from bigmodel_cli.runs import (
        PICTURE,
        compare_runs,
        comparison,
        list_runs,
        listing,
        to_json,
    )

    names = all_of_stdin(given or [])
    if not compare:
        refuse("a listing (without --compare)", {"--plot": plot})
        found = list_runs(names)
    else:
        check_picture(plot or PICTURE, "--plot")
        found = compare_runs(names, plot or PICTURE)
    if json:
        print_result({"runs": to_json(found)})
    elif found:
        print_result(table(*(comparison if compare else listing)(found)))
