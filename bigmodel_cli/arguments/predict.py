"""The options of `bigmodel predict`: what is read, and how text is written."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

MOST_BEAMS = 1000
"""The same as for `task.beams`."""
MOST_TOKENS = 10_000_000

# Optional, not `X | None`: see __init__.py.
Inputs = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="INPUT",
        help=(
            "Images, recordings, prompts or texts; when left out the lines of stdin, each with a"
            " record of its own."
        ),
        show_default=False,
    ),
]
Top = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1, help="Labels shown for each item, e.g. --top 5. [default: 3]", show_default=False
    ),
]
MaxTokens = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1,
        max=MOST_TOKENS,
        help=(
            "Most tokens to generate, e.g. --max-tokens 50. [default: 200 for a decoder; for an"
            " encoder-decoder the task's, or its context]"
        ),
        show_default=False,
    ),
]
Temperature = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        min=0,
        help=(
            "0 is greedy, e.g. --temperature 0.8. [default: 0.8 for a decoder, and where --top-k,"
            " --top-p or --min-p are given; an encoder-decoder searches otherwise]"
        ),
        show_default=False,
    ),
]
TopK = Annotated[
    int, typer.Option(min=0, help="Sample from the k most likely tokens; 0: all, e.g. --top-k 50.")
]
TopP = Annotated[
    float,
    typer.Option(
        min=0.001,
        max=1,
        help="Sample from the most likely tokens with this total probability, e.g. --top-p 0.9.",
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Sample from tokens with this part of the highest probability, e.g. --min-p 0.05.",
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        min=0.01,
        help="Above 1, earlier tokens become less likely, e.g. --repetition-penalty 1.2.",
    ),
]
Beams = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1,
        max=MOST_BEAMS,
        help=("Beam width of the search, e.g. --beams 5; 1 is greedy. [default: as the task says]"),
        show_default=False,
    ),
]
LengthPenalty = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        min=0,
        help="Length-penalty exponent of beam search, e.g. 0.6. [default: the task's]",
        show_default=False,
    ),
]
NBest = Annotated[
    int,
    typer.Option(min=1, max=MOST_BEAMS, help="Hypotheses shown for each input, e.g. --n-best 3."),
]
DrawSeed = Annotated[int, typer.Option(min=0, help="Seed of sampling, e.g. --seed 1.")]
JsonLines = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON Lines on a terminal too, where a continued text is text."
    ),
]
