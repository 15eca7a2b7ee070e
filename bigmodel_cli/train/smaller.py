"""Dividing micro-batches that do not fit into memory, and repeating the step from the same state.

The samples of a step stay the same, and so do its sums and counts, which are divided once: the loss
and the gradient are those of the whole batch, within rounding, and so is the experts' balance. What
looks at a micro-batch as a whole differs by nature: BatchNorm's statistics are of the smaller
pieces, and so are dropout's draws on a GPU.

A `Division` records from which batch on there are how many pieces, in the run's directory at once
and in each checkpoint, so that a resumed run changes where the first one did, bit for bit.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bigmodel_cli.errors import ResourceError, forget_frames, is_out_of_memory
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.rundir import RunDirectory

T = TypeVar("T")
FILE = "micro_batches.json"
"""The file of a run's `Division`."""
REMEDY = "make the model, its context or its images smaller, or compute in train.precision: bf16"


@dataclass
class Division:
    """Pieces per micro-batch, and samples at once in a validation, from which batch on.

    Batches are counted as the run takes them, so that an index comes once, even after a rewind.
    """

    pieces: dict[int, int] = field(default_factory=dict)  # from this batch on -> pieces
    # from this batch on -> samples at once
    validation: dict[int, int] = field(default_factory=dict)

    def at(self, batch: int) -> int:
        """Pieces of each micro-batch of that batch."""
        return max((n for first, n in self.pieces.items() if first <= batch), default=1)

    def validation_at(self, batch: int) -> int | None:
        """Samples at once in a validation after so many batches; None for what the spec says."""
        return min((n for first, n in self.validation.items() if first <= batch), default=None)

    def to_json(self) -> dict[str, dict[str, int]]:
        """As plain values."""
        return {
            "pieces": {str(k): n for k, n in self.pieces.items()},
            "validation": {str(k): n for k, n in self.validation.items()},
        }

    def add(self, values: Any) -> None:
        """Add the changes that `to_json` wrote.

        Raises `ValueError` or `AttributeError` for anything else.
        """
        for name, own in (("pieces", self.pieces), ("validation", self.validation)):
            for first, n in values.get(name, {}).items():
                if not isinstance(n, int) or n < 1:
                    raise ValueError(f"{name}: {n!r}")
                own[int(first)] = n

    def read(self, directory: Path) -> None:
        """Add the changes of a run's directory; those of a torn or missing file are found again."""
        try:
            self.add(json.loads((directory / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError, RecursionError):
            return

    def write(self, directory: RunDirectory) -> None:
        """Write the changes to a run's directory; if that fails, a resume may find others."""
        directory.keep(FILE, json.dumps(self.to_json()) + "\n")


def more_pieces(pieces: int, options: TrainOptions, rows: int) -> int:
    """The next number of pieces for at most `rows` rows: twice as many, of one size where samples
    are counted.

    Raises `ResourceError` where each piece is one sample already.
    """
    if pieces >= rows:
        raise ResourceError(f"out of memory with one sample at once; {REMEDY}")
    wanted = 2 * pieces
    if options.batch_tokens is None:
        while options.micro % wanted and wanted < options.micro:
            wanted += 1
    return wanted


def divided(micro_batches: list[dict[str, Tensor]], pieces: int) -> list[dict[str, Tensor]]:
    """Each micro-batch in `pieces` pieces, as equal as possible; one with fewer rows in single
    rows.
    """
    if pieces == 1:
        return micro_batches
    parts: list[dict[str, Tensor]] = []
    for batch in micro_batches:
        count = min(pieces, rows_of(batch))
        split = {name: tensor.tensor_split(count) for name, tensor in batch.items()}
        parts += [{name: tensors[i] for name, tensors in split.items()} for i in range(count)]
    return parts


def rows_of(batch: dict[str, Tensor]) -> int:
    """The samples of a micro-batch."""
    return len(next(iter(batch.values())))


def fitted(
    division: Division,
    batch: int,
    options: TrainOptions,
    micro_batches: list[dict[str, Tensor]],
    attempt: Callable[[list[dict[str, Tensor]]], T],
    told: Callable[[str], None],
    most: Callable[[int], int] = int,
) -> T:
    """The result of `attempt` for a batch's micro-batches, in as many pieces as needed
    (recorded).

    `most` makes of a process's rows the most of all processes, which divide alike.
    """
    pieces, rows = division.at(batch), max(map(rows_of, micro_batches), default=0)
    unit = "samples" if options.batch_tokens is None else "tokens"

    def smaller(now: int) -> int:
        more = more_pieces(now, options, most(rows))
        told(
            f"out of memory with a micro-batch of {options.micro // now:,} {unit}; it is done again"
            f" in pieces of {max(1, options.micro // more):,}, and so are those after it: the batch"
            " and its loss stay"
        )
        return more

    found, used = until_it_fits(lambda n: attempt(divided(micro_batches, n)), pieces, smaller)
    if used != pieces:
        division.pieces[batch] = used
    return found


def until_it_fits(
    attempt: Callable[[int], T], pieces: int, smaller: Callable[[int], int]
) -> tuple[T, int]:
    """The result of `attempt(pieces)`, with more pieces after each out of memory; and the pieces.

    `smaller` gives the next number, or raises `ResourceError`. Memory is freed before the next
    attempt.
    """
    while True:
        try:
            return attempt(pieces), pieces
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            forget_frames(error)
        pieces = smaller(pieces)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
