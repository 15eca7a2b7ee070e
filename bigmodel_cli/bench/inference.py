"""Forward passes, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bigmodel_cli.bench.using import Batch, Passes
from bigmodel_cli.device import autocast


class Inference(Passes):
    """The model's outputs for batches: wait for data, forward."""

    def passed(self, batch: Batch, laps: Callable[[str], None]) -> Any:
        batch = self.moved(batch)
        laps("wait")
        with autocast(self.device, self.used.precision):
            task = self.used.task.of_one_pass()  # as the FLOPs beside it are counted
            outputs = task.forward(self.used.model, batch, training=False)
        laps("forward")
        return outputs
