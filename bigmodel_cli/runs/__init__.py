"""`bigmodel runs`: lists and compares runs.

Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.console import listed, say
from bigmodel_cli.differences import differing
from bigmodel_cli.errors import SpecError
from bigmodel_cli.runs.plot import MOST_NAMED, groups, plot
from bigmodel_cli.runs.record import Metric, RunRecord, is_run, read_run
from bigmodel_cli.runs.search import find_runs
from bigmodel_cli.runs.tables import comparison, listing, to_json

PICTURE = Path("compare.png")
MOST_SHOWN = 6


def read_runs(given: Sequence[str]) -> list[RunRecord]:
    """The runs that are named, or below the named folders.

    Each part that cannot be read is one warning.
    """
    runs = [read_run(path) for path in find_runs(given, say)]
    for run in runs:
        for warning in run.warnings:
            say(f"warning: {warning}")
    return runs


def list_runs(given: Sequence[str]) -> list[RunRecord]:
    """The runs of a listing; reports where there are none."""
    runs = read_runs(given)
    if not runs:
        say("no runs here; `bigmodel pretrain SPEC` begins one")
    return runs


def compare_runs(given: Sequence[str], picture: Path) -> list[RunRecord]:
    """The runs of a comparison; draws their curves.

    Raises `SpecError` where there are none.
    """
    runs = read_runs(given)
    if not runs:
        raise SpecError(
            "--compare: there is no run to compare; name runs, or folders that hold them"
        )
    kinds = groups(runs)
    if len(kinds) > 1:
        what = ", ".join(
            f"{task} by {metric.name} ({len(own)})" for (task, metric), own in kinds.items()
        )
        say(f"note: the runs are not all of one kind, and each kind has its own plot: {what}")
    for own in kinds.values():
        if len(own) > MOST_NAMED:
            say(
                f"note: {len(own)} runs are too many for the plot to name them; it names up to"
                f" {MOST_NAMED}"
            )
        counted = [
            p for p in differing([r.options for r in own]) if p.startswith(("data.", "task."))
        ]
        if counted:
            say(
                f"note: runs differ in {listed(counted, MOST_SHOWN)}: their losses and metrics may"
                " not be of the same thing"
            )
    say(
        f"plot: {picture}"
        if plot(runs, picture)
        else "no plot: none of the runs has recorded a loss or a metric"
    )
    return runs


__all__ = [
    "PICTURE",
    "Metric",
    "RunRecord",
    "compare_runs",
    "comparison",
    "is_run",
    "list_runs",
    "listing",
    "read_run",
    "read_runs",
    "to_json",
]
