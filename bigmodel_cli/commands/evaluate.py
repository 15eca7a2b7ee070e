"""`bigmodel eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands.processes import SharedItems, check_processes, start_processes
from bigmodel_cli.commands.shared import (
    A_CHECKPOINT,
    Device,
    Json,
    Plugin,
    Precision,
    Set,
    collect_overrides,
    print_result,
    refuse,
    resolve_checkpoint,
)
from bigmodel_cli.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from bigmodel_cli.evaluation.report import Report
    from bigmodel_cli.overrides import Change

Split = Annotated[
    str | None,
    typer.Option(
        help=(
            "train, val or test. [default: test where there is one, else val; only that split"
            " is opened]"
        )
    ),
]
Predictions = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write every item with answer and scores as JSON Lines."),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        metavar="CKPT2", help="Test the difference to a second checkpoint on the same items."
    ),
]
Confusion = Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the confusion matrix.")]
Rescore = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Score a file of --predictions again, without a model."),
]
Metric = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="With --rescore, compare texts by bleu, chrf, rouge, wer or cer, e.g. --metric rouge.",
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Run tasks of lm-evaluation-harness, e.g. --tasks hellaswag,arc_easy.",
    ),
]
Include = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="With --tasks: a folder of task files of yours, e.g. --include my_tasks.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="With --tasks: stop each after this many items, e.g. --limit 100."),
]


def evaluate(
    checkpoint: Annotated[str | None, A_CHECKPOINT] = None,
    set_: Set = None,
    plugin: Plugin = None,
    split: Split = None,
    predictions: Predictions = None,
    compare: Compare = None,
    confusion: Confusion = None,
    rescore: Rescore = None,
    metric: Metric = None,
    tasks: Tasks = None,
    include: Include = None,
    limit: Limit = None,
    device: Device = "auto",
    precision: Precision = None,
    processes: SharedItems = None,
    json: Json = False,
) -> None:
    """Measure the task's metrics on a whole split, each with its count and 95 % interval.

    Example: bigmodel eval runs/mnist_cnn --json, or: bigmodel eval runs/a --compare runs/b
    """
    if (checkpoint is None) == (rescore is None):
        raise SpecError(
            "give either a checkpoint, or --rescore with a file that --predictions wrote"
        )
    of_splits = {
        "--split": split,
        "--predictions": predictions,
        "--compare": compare,
        "--confusion": confusion,
    }
    of_models = {"--set": set_, "--precision": precision}
    of_tasks = {"--include": include, "--limit": limit}
    overrides = collect_overrides(set_, precision)
    piped = checkpoint == "-"
    refused = {"--rescore": rescore, "--tasks": tasks, "-": piped and processes is None}
    check_processes(processes, 0, refused)
    if processes is not None and processes > 1:
        start_processes(processes, 0, str(resolve_checkpoint("-")) if piped else None)
    if rescore is not None:
        what = "a file of predictions (--rescore)"
        refuse(what, {**of_splits, **of_models, **of_tasks, "--tasks": tasks})
        report = _rescored(rescore, metric or [])
    elif tasks is not None:
        refuse("the harness (--tasks)", {**of_splits, "--metric": metric})
        from bigmodel_cli.evaluation.lm_eval import evaluate_tasks
        from bigmodel_cli.loaded import load_checkpoint

        loaded = load_checkpoint(resolve_checkpoint(str(checkpoint)), device, overrides)
        report = evaluate_tasks(loaded, [name.strip() for name in tasks.split(",")], include, limit)
    else:
        refuse("an evaluation without --tasks", of_tasks)
        refuse("an evaluation without --rescore", {"--metric": metric})
        report = _measured(
            str(checkpoint), overrides, split, device, predictions, compare, confusion
        )
    print_result(report.to_json() if json else report.to_text())


def _measured(
    checkpoint: str,
    overrides: list[Change],
    split: str | None,
    device: str,
    predictions: Path | None,
    compare: Path | None,
    confusion: Path | None,
) -> Report:
    """The metrics over a split, of which each process has a share; the first writes the files."""
    from bigmodel_cli.distributed import announced
    from bigmodel_cli.evaluation.report import evaluate_checkpoint
    from bigmodel_cli.evaluation.several import several

    path = resolve_checkpoint(checkpoint)
    files = (predictions, confusion) if announced().first else (None, None)
    with several(device) as own:
        return evaluate_checkpoint(path, overrides, split, own, files[0], compare, files[1])


def _rescored(predictions: Path, metrics: list[str]) -> Report:
    from bigmodel_cli.evaluation.report import rescored
    from bigmodel_cli.metrics.text import MEASURES

    for name in metrics:
        if name not in MEASURES:
            raise SpecError(
                f"--metric {name}: not one of {', '.join(MEASURES)}{did_you_mean(name, MEASURES)}"
            )
    return rescored(predictions, metrics)
