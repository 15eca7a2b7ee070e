"""Weights & Biases."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import Field

from bigmodel_cli.trackers.base import AnyTrackerOptions, Service, TrackedRun

UPLOAD = 20.0
"""Seconds that the end waits for an upload; less than a run waits for its trackers."""


class WandbOptions(AnyTrackerOptions):
    """Weights & Biases; a resumed run goes on under the same id.

    Offline, `wandb sync` sends the run's folder `wandb` later.
    """

    type: Literal["wandb"] = "wandb"
    package = "wandb"
    project: str = Field("bigmodel", description="the project that the run belongs to")
    entity: str | None = Field(
        None, description="the user or team of the project; left out: your default one"
    )
    mode: Literal["online", "offline"] = Field(
        "online", description="send records at once, or keep them in files"
    )
    tags: list[str] = Field([], description="words to find the run by")

    def build(self, run: TrackedRun) -> Wandb:
        return Wandb(self, run)


class Wandb(Service):
    """A run whose figures are shown over "step"; its name is that of the run's directory."""

    what = "Weights & Biases"

    def __init__(self, options: WandbOptions, run: TrackedRun) -> None:
        super().__init__(run, options.type)
        self.options = options
        self.there: Any = None

    def start(self) -> None:
        """Begin the run, or go on with it."""
        import wandb

        options = self.options
        self.there = wandb.init(
            project=options.project,
            entity=options.entity,
            mode=options.mode,
            tags=options.tags,
            id=self.id(lambda: uuid.uuid4().hex[:12]),
            name=self.run.path.name,
            dir=str(self.run.path),
            config=self.run.spec,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, finish_timeout=UPLOAD, finish_timeout_raises=True
            ),
        )
        self.there.define_metric("step")
        self.there.define_metric("*", step_metric="step")

    def send(self, values: dict[str, float], step: int) -> None:
        """Log them over our own "step": wandb's step cannot go back."""
        self.there.log({**values, "step": step})

    def close(self, done: bool) -> None:
        """Finish the run and wait for its upload. Raises `TimeoutError` where that takes long."""
        if self.there is not None:
            self.there.finish(exit_code=0 if done else 1)
