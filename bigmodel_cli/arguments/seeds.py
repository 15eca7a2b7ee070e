"""`--seeds` of the training commands: its values, and the report on its runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from bigmodel_cli.arguments.common import Start, print_result, refuse, run_training

if TYPE_CHECKING:
    from bigmodel_cli.overrides import Change

Seeds = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="N,N,...",
        help=(
            "Train a run for each seed, NAME-seed0 and so on, e.g. --seeds 0,1,2; with --resume go"
            " on with those that are not finished. Prints a table with mean and standard deviation;"
            " in a pipe it is on stderr, and stdout has the checkpoints' paths, one a line (| xargs"
            " -n 1 bigmodel eval)."
        ),
        show_default=False,
    ),
]


def run_seeds(
    seeds: str, seed: int | None, load: Callable[[Sequence[Change]], Any], start: Start
) -> None:
    """Train one run for each seed; `load` gives the spec with a change.

    A dry run shows one, since they are alike.

    Raises `NumericsError` where the loss of a run was not finite, after all others are done and
    reported.
    """
    from bigmodel_cli.overrides import Override
    from bigmodel_cli.train.signals import Signals

    refuse("runs of several --seeds", {"--seed": seed is not None})
    numbers = _numbers(seeds, start.overrides)
    specs = {number: load([Override("train.seed", number, "--seeds")]) for number in numbers}
    if start.dry_run:
        run_training(specs[numbers[0]], start)
        return
    if not start.resume:
        refuse("a run that begins (without --resume)", {"--accept-data": start.accept_data})
    with Signals() as signals:
        from bigmodel_cli.train.seeds import train_seeds

        outcomes = list(train_seeds(specs, start.request(), signals))
    _report(outcomes, start.json)


def _numbers(text: str, overrides: Sequence[Change]) -> list[int]:
    from bigmodel_cli.errors import SpecError
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


def _report(outcomes: Sequence[Any], json: bool) -> None:
    """Print the results of the seeds: a table or JSON; in a pipe the checkpoints, with the table on
    stderr.
    """
    from bigmodel_cli.console import say, table
    from bigmodel_cli.errors import NumericsError
    from bigmodel_cli.runs import as_text, read_run
    from bigmodel_cli.runs.seeds import figures, seeds_table

    done = {
        outcome.seed: outcome.checkpoint for outcome in outcomes if outcome.checkpoint is not None
    }
    runs = {seed: read_run(path.parent.parent) for seed, path in done.items()}
    if json and done:
        metrics = {
            title: {**f.summary(), "values": dict(f.values)} for title, f in figures(runs).items()
        }
        failed = {outcome.seed: outcome.fault for outcome in outcomes if outcome.fault}
        print_result(
            {
                "checkpoints": {seed: str(path) for seed, path in done.items()},
                "metrics": metrics,
                "failed": failed,
            }
        )
    elif done and sys.stdout.isatty():
        print_result(as_text(*seeds_table(runs)))
    elif done:
        say(table(*seeds_table(runs)))
        print_result("\n".join(str(path) for path in done.values()))
    lost = [str(outcome.seed) for outcome in outcomes if outcome.fault]
    if lost:
        raise NumericsError(
            f"--seeds: {len(lost)} of {len(outcomes)} runs had no finite loss (seed"
            f" {', '.join(lost)})"
        )
