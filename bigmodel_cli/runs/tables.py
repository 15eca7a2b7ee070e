"""Runs as tables: a line for each, or a column for each to compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel_cli.console import one_line
from bigmodel_cli.differences import differing, short_paths, written
from bigmodel_cli.progress import duration
from bigmodel_cli.runs.record import RunRecord
from bigmodel_cli.runs.search import run_names

MOST_OPTIONS = 6
MOST_VALUE = 28
"""Most options of a run that a listing shows, and most characters of a value."""
NONE = "-"


def listing(runs: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: state, step, best metric, time, and the options in which each run differs
    from the others.
    """
    names = run_names([run.path for run in runs])
    options = short_paths(differing([run.options for run in runs]))
    rows = [
        [name, _state(run), _step(run), _best(run), _time(run), _differences(run.options, options)]
        for name, run in zip(names, runs, strict=True)
    ]
    return ["run", "state", "step", "best", "trained", "differs in"], rows


def comparison(runs: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a column for each run; options that differ, best and last metrics, steps,
    time, parameters.
    """
    options = short_paths(differing([run.options for run in runs]))
    lines: list[tuple[str, list[str]]] = [("state", [_state(run) for run in runs])]
    lines += [(short, [_value(r.options, path) for r in runs]) for path, short in options.items()]
    for metric in dict.fromkeys(run.metric for run in runs):
        lines.append(
            (f"best {metric.name}", [_best(r, False) if r.metric == metric else NONE for r in runs])
        )
        lines.append(("  at step", [_best_step(r) if r.metric == metric else NONE for r in runs]))
    for name in dict.fromkeys(name for run in runs if (v := run.last()) for name in v.values):
        lines.append((f"last {name}", [_last(run, name) for run in runs]))
    lines.append(("step", [_step(run) for run in runs]))
    lines.append(("trained", [_time(run) for run in runs]))
    if any(run.parameters is not None for run in runs):
        lines.append(
            ("parameters", [NONE if r.parameters is None else f"{r.parameters:,}" for r in runs])
        )
    return ["", *run_names([r.path for r in runs])], [
        [one_line(label), *cells] for label, cells in lines
    ]


def to_json(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The runs as plain values."""
    options = differing([run.options for run in runs])
    return [
        {
            "name": name,
            "path": str(run.path),
            "state": run.state,
            "process": run.process or None,
            "step": run.step,
            "total_steps": run.total,
            "parameters": run.parameters,
            "seconds": run.elapsed,
            "metric": run.metric.name,
            "best": (
                dict(zip(("step", "value"), best, strict=True)) if (best := run.best()) else None
            ),
            "last": {"step": last.step, **last.values} if (last := run.last()) else None,
            "differs": {path: run.options[path] for path in options if path in run.options},
        }
        for name, run in zip(run_names([run.path for run in runs]), runs, strict=True)
    ]


def _state(run: RunRecord) -> str:
    return f"{run.state} (process {run.process})" if run.process else run.state


def _step(run: RunRecord) -> str:
    return f"{run.step:,}" + (f" of {run.total:,}" if run.total is not None else "")


def _time(run: RunRecord) -> str:
    return NONE if run.elapsed is None else duration(run.elapsed)


def _best(run: RunRecord, named: bool = True) -> str:
    best = run.best()
    if best is None:
        return NONE
    value = run.metric.shown(run.metric.name, best[1])
    return f"{one_line(run.metric.name)} {value}" if named else value


def _best_step(run: RunRecord) -> str:
    best = run.best()
    return NONE if best is None else f"{best[0]:,}"


def _last(run: RunRecord, name: str) -> str:
    last = run.last()
    return (
        NONE
        if last is None or name not in last.values
        else run.metric.shown(name, last.values[name])
    )


def _differences(values: Mapping[str, Any], options: Mapping[str, str]) -> str:
    own = [f"{short}={_value(values, path)}" for path, short in options.items() if path in values]
    more = f" and {len(own) - MOST_OPTIONS} more" if len(own) > MOST_OPTIONS else ""
    return " ".join(own[:MOST_OPTIONS]) + more


def _value(values: Mapping[str, Any], path: str) -> str:
    if path not in values:
        return NONE
    text = one_line(written(values[path]))
    return text if len(text) <= MOST_VALUE else f"...{text[3 - MOST_VALUE :]}"
