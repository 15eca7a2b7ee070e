"""Passes that a process takes because others do, where the weights of a pass are of all of them."""

from __future__ import annotations

from dataclasses import dataclass

from bigmodel_cli.lazy import torch
from bigmodel_cli.parts.checkpointed import not_counting
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.passes import forward
from bigmodel_cli.train.state import TrainState


@dataclass(frozen=True)
class Idle:
    """So many passes of a step in which this process has no sample: they change nothing."""

    count: int
    state: TrainState
    objective: Objective
    options: TrainOptions
    device: torch.device

    def take(self, unit: float = 1.0, *, first: bool = False) -> float:
        """Take them, with a gradient of 0 where there are gradients; `first`: no pass of this
        process was before them in the step. Returns what gradients of the step are divided by:
        `unit`, or what the processes agree on in their first pass.
        """
        for number in range(self.count):
            assert self.state.sharding is not None
            with not_counting(self.state.model):
                spare = self.state.sharding.spare
                loss, _ = forward(self.state, self.objective, self.options, spare, self.device)
                if not loss.requires_grad:
                    continue
                if first and number == 0 and self.state.loss_scale.dynamic:
                    unit = self.state.kept.agreed(1.0)
                (loss * 0.0).backward()
        return unit
