"""The options of `bigmodel eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# Optional, not `X | None`: see __init__.py.
AnyCheckpoint = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        metavar="CKPT",
        help="A checkpoint or run directory; '-' reads the path from stdin.",
        show_default=False,
    ),
]
SplitName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help=(
            "train, val or test. [default: test where there is one, else val; opens that split"
            " alone]"
        ),
        show_default=False,
    ),
]
Samples = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--predictions",
        metavar="FILE",
        help="Write every item with answer and scores as JSON Lines.",
        show_default=False,
    ),
]
Compare = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="CKPT2",
        help="Test the difference to a second checkpoint on the same items.",
        show_default=False,
    ),
]
Confusion = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(metavar="PNG", help="Draw which class was taken for which.", show_default=False),
]
Rescore = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="FILE",
        help="Score a file of --predictions again, without a model.",
        show_default=False,
    ),
]
Tasks = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Run tasks of lm-evaluation-harness, e.g. --tasks hellaswag,arc_easy.",
        metavar="NAMES",
        show_default=False,
    ),
]
Include = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="FOLDER",
        help="With --tasks: a folder of task files of yours, e.g. --include my_tasks.",
        show_default=False,
    ),
]
Limit = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1,
        help="With --tasks: stop each after so many items, e.g. --limit 100.",
        show_default=False,
    ),
]
Metric = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="With --rescore, compare texts by bleu, chrf, rouge, wer or cer, e.g. --metric rouge.",
        show_default=False,
    ),
]
