"""Options of `bigmodel attend` and `bigmodel bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# Optional, not `X | None`: see __init__.py.
Input = Annotated[
    str, typer.Argument(metavar="INPUT", help="A text, or an image's path.", show_default=False)
]
Layer = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        help=(
            "The layer shown, e.g. --layer 0. [default: the last in the terminal, all in the"
            " picture]"
        ),
        show_default=False,
    ),
]
Head = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        help=(
            "Its head, e.g. --head 2. [default: the mean of all in the terminal, each in the"
            " picture]"
        ),
        show_default=False,
    ),
]
Picture = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="The picture, e.g. --out heads.png or heads.pdf. [default: attend.png]",
        show_default=False,
    ),
]
Targets = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="SPEC|CKPT ...",
        help=(
            "Specs or checkpoints, the first being what others are compared with; a built-in set"
            " when left out."
        ),
        show_default=False,
    ),
]
Seconds = Annotated[
    float, typer.Option(min=0.1, help="How long each network is timed, e.g. --seconds 10.")
]
