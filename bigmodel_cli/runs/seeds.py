"""Mean and standard deviation of the metrics of runs that differ only in their seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bigmodel_cli.runs.record import RunRecord, training_figures
from bigmodel_cli.runs.tables import NONE


class Figure(NamedTuple):
    """A metric of several runs: seed -> value, without those that are not finite."""

    metric: str
    values: Mapping[int, float]

    def summary(self) -> dict[str, float | int | None]:
        """Mean, standard deviation (n - 1; None for a single run) and number of values."""
        values = list(self.values.values())
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.fmean(values), "deviation": deviation, "n": len(values)}


def figures(runs: Mapping[int, RunRecord]) -> dict[str, Figure]:
    """'best accuracy' -> its values: the best and last metrics of the validations, or where there
    are none the last loss.
    """
    by_title: dict[str, Figure] = {}
    for metric in dict.fromkeys(run.metric.name for run in runs.values()):
        by_title[f"best {metric}"] = Figure(
            metric, {s: best[1] for s, r in runs.items() if (best := r.best())}
        )
    lasts = {seed: last.values for seed, run in runs.items() if (last := run.last())}
    for name in dict.fromkeys(name for values in lasts.values() for name in values):
        by_title[f"last {name}"] = Figure(
            name, {s: values[name] for s, values in lasts.items() if name in values}
        )
    if not lasts:
        ends = {
            seed: losses[-1][1]
            for seed, run in runs.items()
            if (losses := training_figures(run.path))
        }
        by_title["last training loss"] = Figure("loss", ends)
    return {title: figure for title, figure in by_title.items() if figure.values}


def seeds_table(runs: Mapping[int, RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a line for each seed, and three for their mean, deviation and number."""
    columns, metric = figures(runs), next(iter(runs.values())).metric

    def cells(key: Any) -> list[str]:
        return [
            metric.shown(f.metric, f.values[key]) if key in f.values else NONE
            for f in columns.values()
        ]

    def common(key: str, show: Callable[[str, float], str]) -> list[str]:
        values = [(f.metric, f.summary()[key]) for f in columns.values()]
        return [NONE if value is None else show(name, value) for name, value in values]

    rows = [[str(seed), *cells(seed), f"{run.step:,}", str(run.path)] for seed, run in runs.items()]
    counts = [str(len(f.values)) for f in columns.values()]
    rows += [
        ["mean", *common("mean", metric.shown), "", ""],
        ["deviation (n - 1)", *common("deviation", metric.shown_difference), "", ""],
        ["n", *counts, "", ""],
    ]
    return ["seed", *columns, "step", "run"], rows
