"""The curves of `bench --learn` as rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from bigmodel_cli.bench.learn.result import Learning
from bigmodel_cli.outputs import write_output

COLUMNS = ("name", "rate", "seed", "step", "seconds", "flops", "samples")


def write_csv(found: Learning, path: Path) -> None:
    """A row for each validation of each run. Raises `ResourceError`."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow([*COLUMNS, found.metric.name])
    for own in found.ranked:
        for run in own.outcomes:
            for point in run.curve:
                spent = (point.step, point.seconds, point.step * own.cost.flops)
                samples = point.step * own.cost.samples
                rows.writerow([own.name, run.rate, run.seed, *spent, samples, point.value])
    write_output(path, [text.getvalue().encode()])
