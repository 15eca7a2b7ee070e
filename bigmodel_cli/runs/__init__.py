"""`bigmodel runs`: lists and compares runs.

Nothing here needs torch.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.console import say, table
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
            more = f" and {len(counted) - MOST_SHOWN} more" if len(counted) > MOST_SHOWN else ""
            where = f"{', '.join(counted[:MOST_SHOWN])}{more}"
            say(
                f"note: runs differ in {where}: their losses and metrics may not be of the same"
                " thing"
            )
    say(
        f"plot: {picture}"
        if plot(runs, picture)
        else "no plot: none of the runs has recorded a loss or a metric"
    )
    return runs


def as_text(columns: list[str], rows: list[list[str]]) -> str:
    """A table for stdout: with lines, and folded to the width, on a terminal; plain elsewhere."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "") in ("dumb", ""):
        return table(columns, rows)
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    text = io.StringIO()
    lines = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        lines.add_column(Text(column), overflow="fold")
    for row in rows:
        lines.add_row(*map(Text, row))
    Console(file=text, width=shutil.get_terminal_size().columns, highlight=False).print(
        lines
    )  # a file: no escape codes
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


__all__ = [
    "PICTURE",
    "Metric",
    "RunRecord",
    "as_text",
    "compare_runs",
    "comparison",
    "is_run",
    "list_runs",
    "listing",
    "read_run",
    "read_runs",
    "to_json",
]
