"""What watches a training: the log, the progress bar, trackers, and results at the end."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.rundir import METRICS, RunDirectory
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.observers.base import Observer, Observers
from bigmodel_cli.train.observers.curve import Curve
from bigmodel_cli.train.observers.log import Log
from bigmodel_cli.train.observers.progress import Progress
from bigmodel_cli.train.observers.results import SamplePictures, SampleText
from bigmodel_cli.train.observers.tracked import Tracked


def observers(spec: Spec, directory: RunDirectory, further: Sequence[Observer] = ()) -> Observers:
    """Those of a run of this spec, and `further` ones after them."""
    log = Log(directory.path / METRICS)
    trackers = [Tracked(options) for options in spec.train.trackers]
    return Observers(
        [log, *trackers, Progress(), SampleText(), SamplePictures(), Curve(log), *further]
    )


__all__ = ["Observer", "Observers", "observers"]
