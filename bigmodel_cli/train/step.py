"""One update of the weights: accumulate sums, divide once, clip, step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bigmodel_cli.device import autocast
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.optim import total_norm
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """Sums over the step's samples, the norm of the mean gradient before clipping, and how many rows the step had."""

    loss_sum: float
    count: float  # of targets, or the sum of their weights
    norm: float
    rows: int

    @property
    def finite(self) -> bool:
        """Whether the loss and the gradient are numbers that may change the weights."""
        return math.isfinite(self.norm) and math.isfinite(self.loss_sum)

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.loss_sum / (self.count or 1.0)


def train_step(
    state: TrainState,
    task: Task,
    options: TrainOptions,
    micro_batches: list[dict[str, Tensor]],
    device: torch.device,
    lr: float,
) -> StepResult:
    """Add up the gradients of the micro-batches and move the weights by their mean over all targets.

    Losses are sums, so that the division by the global count makes accumulation equal to one large batch. Where the loss or
    the gradient is not finite nothing is changed (and under fp16 the loss scale is halved).
    """
    scale = state.loss_scale
    loss_sum: Tensor | None = None
    count: Tensor | None = None
    for batch in micro_batches:
        with autocast(device, options.precision):
            loss, n = task.loss(state.model, batch)
        auxiliary = state.auxiliary()
        total = loss if auxiliary is None else loss + auxiliary * n  # a sum, as the loss is
        (total * scale.value if scale.dynamic else total).backward()
        loss = loss.detach()
        loss_sum, count = (loss, n) if loss_sum is None or count is None else (loss_sum + loss, count + n)
    rows = sum(len(next(iter(batch.values()))) for batch in micro_batches)
    assert loss_sum is not None
    assert count is not None
    divisor = (float(count) or 1.0) * scale.value
    norm = float(total_norm(state.optimizer.gradients())) / divisor
    result = StepResult(float(loss_sum), float(count), norm, rows)
    scale.update(result.finite)
    if result.finite:
        if options.clip is not None and norm > options.clip:
            divisor *= norm / options.clip
        state.optimizer.step(lr, divisor)
        state.update_ema()
    state.optimizer.clear()
    return result
