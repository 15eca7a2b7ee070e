"""The arguments of `bigmodel init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

NewName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The new spec's name; NAME.yaml is written.", show_default=False
    ),
]
Like = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--like",
        metavar="SAMPLE",
        help=(
            "What to start from: decoder, cnn, a file of sample_configs, or a task that one of them"
            " has; decoder when left out. With --data, its structure for your data."
        ),
        show_default=False,
    ),
]
OwnData = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        "--data",
        metavar="PATH",
        help=(
            "Your data: a folder of images by class, a table, texts, sentences with tags (CoNLL),"
            " recordings; twice for two files of pairs."
        ),
        show_default=False,
    ),
]
TextColumn = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--text",
        metavar="COLUMN",
        help="The table's column of text; twice for two.",
        show_default=False,
    ),
]
LabelColumn = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--label",
        metavar="COLUMN",
        help="The table's column of labels, sets of labels or numbers; '' for none.",
        show_default=False,
    ),
]
