"""One update of the weights: accumulate sums, divide once, clip, step.

`train_step` reads what came out once, before the update; `queued_step` does not, so that a GPU
never waits for Python.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from bigmodel_cli.distributed import world
from bigmodel_cli.errors import OutOfMemory, ResourceError, SpecError, memory_remedy
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.passes import REMEDY, Mark, counted, passes, unmarked
from bigmodel_cli.train.state import Before, TrainState
from bigmodel_cli.train.together import begin_step, passes_together

IN_UPDATE = (
    "it was the update of the weights, whose memory no smaller batch lessens: make the model"
    " smaller, or take another train.optimizer; the last checkpoint is as it was"
)


@dataclass(frozen=True)
class StepResult:
    """Sums over the step's samples, gradient norm before clipping,
    and the size in the task's unit.
    """

    loss_sum: float
    count: float  # of targets, or the sum of their weights
    norm: float
    size: float

    @classmethod
    def of(cls, numbers: list[float]) -> StepResult:
        """The result of `queued_step`'s numbers.

        Raises `ValueError` where the objective counted a negative number of targets.
        """
        *result, least = numbers
        if least < 0:
            raise ValueError(f"loss: a negative number of targets: {least:g}")
        return cls(*result)

    @property
    def finite(self) -> bool:
        """Whether the loss and the gradient are finite."""
        return math.isfinite(self.norm) and math.isfinite(self.loss_sum)

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.loss_sum / (self.count or 1.0)


@contextlib.contextmanager
def batch_norm_explained() -> Iterator[None]:
    """Inside, batch normalisation of one value per channel is a `SpecError`."""
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise SpecError(
            "train.batch_size: batch normalisation has one value per channel, in a micro-batch of"
            " one sample whose map is 1 x 1 there; let more samples pass at once"
            " (train.micro_batch_size, train.batch_size), or normalise less (norm: none)"
        ) from None


def train_step(
    state: TrainState,
    objective: Objective,
    options: TrainOptions,
    micro_batches: list[dict[str, Tensor]],
    device: torch.device,
    lr: float,
    mark: Mark = unmarked,
) -> StepResult:
    """Sum the gradients of the micro-batches and update by their mean over all targets.

    Losses are sums, so that the division by the global count makes accumulation equal to one
    large batch; where parts count within a step (the load of experts) micro-batches pass twice.
    Under fp16 the backward pass starts from the loss scale times roughly the mean: the sum
    divided by a power of two near the step's count, which is exact and undone at the end, so
    that the batch size changes neither overflows nor the result.

    Where the loss or the gradient is not finite, weights, averages and the optimizer stay; under
    fp16, where training goes on, so do the statistics of normalisation and of experts, and the loss
    scale is halved. The step counts in the run and its schedule, not in the optimizer; its batch
    and its random numbers are used up.

    Raises `OutOfMemory` where the passes do not fit: everything is restored, the random state too;
    and `ResourceError` where the update does not fit, which may be half done.
    """
    begin_step(state, options)
    before = state.before_step()
    numbers, unit = _gradients(state, objective, options, micro_batches, device, mark, before)
    loss_sum, count, norm, size, least = numbers.tolist()  # the one wait for the device
    divisor = (count or 1.0) * unit
    result = StepResult.of([loss_sum, count, norm / divisor, size, least])
    state.loss_scale.update(result.finite)
    if result.finite:
        if options.max_grad_norm is not None and result.norm > options.max_grad_norm:
            divisor *= result.norm / options.max_grad_norm
        _update(state, lr, divisor, mark)
    elif state.loss_scale.dynamic:
        state.undo(before, random=False)
    state.optimizer.clear()
    return result


def can_queue(state: TrainState, options: TrainOptions, device: torch.device) -> bool:
    """Whether steps need not be waited for: on a GPU, where what follows does not look at them."""
    return device.type == "cuda" and not state.loss_scale.dynamic and options.rewind is None


def queued_step(
    state: TrainState,
    objective: Objective,
    options: TrainOptions,
    micro_batches: list[dict[str, Tensor]],
    device: torch.device,
    lr: float,
    mark: Mark = unmarked,
) -> Tensor:
    """`train_step` without a wait for the device, equal to the bit: numbers for `StepResult.of`.

    It updates before anybody has seen whether the loss is finite. So they are to be read before
    anything of the state is used but for further steps; what is not finite ends the run.

    Raises as `train_step` does.
    """
    begin_step(state, options)
    numbers, unit = _gradients(
        state, objective, options, micro_batches, device, mark, state.before_step()
    )
    result, divisor = divided(numbers, unit, options.max_grad_norm)
    _update(state, lr, divisor, mark)
    state.optimizer.clear()
    return result


def divided(numbers: Tensor, unit: float, most: float | None) -> tuple[Tensor, Tensor]:
    """What `passes` gave, as numbers for `StepResult.of`, and what the gradients are to be divided
    by, clipped to the norm `most`; all on the device.
    """
    loss_sum, count, norm, size, least = numbers.unbind()
    divisor = torch.where(count == 0, 1.0, count) * unit
    norm = norm / divisor
    result = torch.stack((loss_sum, count, norm, size, least))
    if most is not None:
        divisor = torch.where(norm > most, divisor * (norm / most), divisor)
    return result, divisor


def _update(state: TrainState, lr: float, divisor: float | Tensor, mark: Mark) -> None:
    """The step of the optimizer, by gradients divided by `divisor`."""
    with memory_remedy(IN_UPDATE, ResourceError):
        state.optimizer.step(lr, divisor)
        state.update_ema()
    mark("update")


def _gradients(
    state: TrainState,
    objective: Objective,
    options: TrainOptions,
    micro_batches: list[dict[str, Tensor]],
    device: torch.device,
    mark: Mark,
    before: Before,
) -> tuple[Tensor, float]:
    """Sum the gradients: (numbers of `passes`, what gradients were multiplied by)."""
    state.optimizer.wake()
    try:
        with memory_remedy(REMEDY):
            if options.deterministic or not world().alone:
                return passes_together(
                    state, objective, options, micro_batches, device, before, mark
                )
            whole = counted(state, objective, options, micro_batches, device, before)
            return passes(state, objective, options, micro_batches, device, whole, mark)
    except OutOfMemory:
        state.undo(before, random=True)
        raise
