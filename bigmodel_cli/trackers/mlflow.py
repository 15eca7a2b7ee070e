"""MLflow."""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

from pydantic import Field

from bigmodel_cli.differences import leaves
from bigmodel_cli.trackers.base import AnyTrackerOptions, Service, TrackedRun

MOST_PARAMETERS = 100
"""In one call."""
LONGEST = 500
"""Characters of a parameter."""


class MLflowOptions(AnyTrackerOptions):
    """An MLflow server, folder or database; a resumed run goes on under the same id."""

    type: Literal["mlflow"] = "mlflow"
    package = "mlflow"
    uri: str | None = Field(
        None,
        description=(
            "its address: http://..., sqlite:///FILE; left out: $MLFLOW_TRACKING_URI or its own"
            " default"
        ),
    )
    experiment: str = Field(
        "bigmodel", description="the experiment that the run belongs to; made where there is none"
    )

    def build(self, run: TrackedRun) -> MLflow:
        return MLflow(self, run)


class MLflow(Service):
    """One run there, whose parameters are the spec's options; its name is that of the run's
    directory.
    """

    what = "MLflow"

    def __init__(self, options: MLflowOptions, run: TrackedRun) -> None:
        super().__init__(run, options.type)
        self.options = options
        self.there = ""
        self.client: Any = None

    def start(self) -> None:
        """Begin the run, or go on with it."""
        from mlflow import MlflowClient

        # its lines would break the progress bar
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.client = MlflowClient(tracking_uri=self.options.uri)
        resumed = self.known
        self.there = self.id(self.create)
        if resumed:
            self.client.update_run(self.there, status="RUNNING")

    def create(self) -> str:
        """A new run's id."""
        from mlflow.entities import Param

        name = self.options.experiment
        found = self.client.get_experiment_by_name(name)
        experiment = (
            found.experiment_id if found is not None else self.client.create_experiment(name)
        )
        run = str(self.client.create_run(experiment, run_name=self.run.path.name).info.run_id)
        parameters = [Param(path, str(value)[:LONGEST]) for path, value in leaves(self.run.spec)]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self.client.log_batch(run, params=parameters[first : first + MOST_PARAMETERS])
        return run

    def send(self, values: dict[str, float], step: int) -> None:
        """Log them at their step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(
            self.there, [Metric(name, value, now, step) for name, value in values.items()]
        )

    def close(self, done: bool) -> None:
        """Report how the run ended."""
        if self.there:
            self.client.set_terminated(self.there, "FINISHED" if done else "KILLED")
