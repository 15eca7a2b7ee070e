"""`--seeds` of the training commands: its values, and the report on its runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigmodel_cli.commands.shared import print_result
from bigmodel_cli.errors import NumericsError, SpecError

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change
    from bigmodel_cli.train.seeds import Outcome


def seeds_of(text: str, overrides: Sequence[Change]) -> list[int]:
    """The numbers in the value of --seeds. Raises `SpecError`."""
    from bigmodel_cli.overrides import key_of

    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 20 for word in words):
        raise SpecError(
            f"--seeds {text}: not whole numbers with commas between them, such as 0,1,2"
        )
    numbers = [int(word) for word in words]
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise SpecError(
            f"--seeds {text}: {twice[0]} is given twice; it would be the same run again"
        )
    if "train.seed" in map(key_of, overrides):
        raise SpecError("--set train.seed has no effect beside --seeds; leave one of them out")
    return numbers


def print_seeds(outcomes: Sequence[Outcome], json: bool) -> None:
    """Print the results of the seeds: a table or JSON; in a pipe the checkpoints, with the table on
    stderr.

    Raises `NumericsError` where the loss of a run was not finite.
    """
    from bigmodel_cli.console import say, table
    from bigmodel_cli.runs import read_run
    from bigmodel_cli.runs.seeds import figures, seeds_table

    done = {o.seed: o.checkpoint for o in outcomes if o.checkpoint is not None}
    failed = {o.seed: o.fault for o in outcomes if o.fault}
    runs = {seed: read_run(path.parent.parent) for seed, path in done.items()}
    if json and done:
        print_result(
            {
                "checkpoints": {seed: str(path) for seed, path in done.items()},
                "metrics": {
                    title: {**figure.summary(), "values": dict(figure.values)}
                    for title, figure in figures(runs).items()
                },
                "failed": failed,
            }
        )
    elif done and sys.stdout.isatty():
        print_result(table(*seeds_table(runs)))
    elif done:
        say(table(*seeds_table(runs)))
        print_result("\n".join(map(str, done.values())))
    if failed:
        raise NumericsError(
            f"--seeds: {len(failed)} of {len(outcomes)} runs had no finite loss (seed"
            f" {', '.join(map(str, failed))})"
        )
