"""The options of `bigmodel runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# Optional, not `X | None`: see __init__.py.
Runs = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="DIR|RUN",
        help=(
            "Folders that hold runs, runs (also by their name below runs/), or their checkpoints;"
            " '-' reads paths from stdin. [default: runs]"
        ),
        show_default=False,
    ),
]
CompareRuns = Annotated[
    bool,
    typer.Option(
        "--compare",
        help="A column for each run: options that differ, best and last metrics; and a plot.",
    ),
]
Plot = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="FILE",
        help=(
            "With --compare: the plot, e.g. --plot curves.pdf; its ending names the format."
            " [default: compare.png]"
        ),
        show_default=False,
    ),
]
