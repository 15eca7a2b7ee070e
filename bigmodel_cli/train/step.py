"""One update of the weights: accumulate sums, divide once, clip, step.

`train_step` reads what came out once, before the update; `queued_step` does not, so that a GPU
never waits for Python.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bigmodel_cli.device import autocast
from bigmodel_cli.errors import OutOfMemory, ResourceError, SpecError, memory_remedy
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.optim import total_norm
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.state import Before, TrainState

Mark = Callable[[str], None]
"""Called with the name of each part of a step as it ends: "forward", "backward", "update"."""


def unmarked(part: str) -> None:
    """Nobody times the step."""


REMEDY = "set a smaller train.micro_batch_size, or a smaller train.batch_size"
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
            whole = _counted(state, objective, options, micro_batches, device, before)
            return passes(state, objective, options, micro_batches, device, whole, mark)
    except OutOfMemory:
        state.undo(before, random=True)
        raise


def _counted(
    state: TrainState,
    objective: Objective,
    options: TrainOptions,
    micro_batches: list[dict[str, Tensor]],
    device: torch.device,
    before: Before,
) -> Tensor | None:
    """Let parts count the whole step ahead, with the random numbers of the passes that follow; the
    number of its targets. None where one pass counts it, or nothing does.
    """
    if len(micro_batches) == 1 or not state.ahead:
        return None
    targets = []
    with torch.no_grad():
        for batch in micro_batches:
            with autocast(device, options.precision):
                targets.append(objective(state.model, batch)[1])
    counts = [part.counts() for part in state.ahead]
    state.undo(before, random=True)
    for part, found in zip(state.ahead, counts, strict=True):
        part.foresee(found)
    return torch.stack(targets).sum()


def passes(
    state: TrainState,
    objective: Objective,
    options: TrainOptions,
    micro_batches: list[dict[str, Tensor]],
    device: torch.device,
    whole: Tensor | None = None,
    mark: Mark = unmarked,
) -> tuple[Tensor, float]:
    """Sum gradients over micro-batches. (5,) sum of losses, count, norm of the gradients as they
    are, size, and the least count of a micro-batch; and what the gradients were multiplied by.

    `whole` is the number of the step's targets, where parts were told its counts.
    """
    scale, unit = state.loss_scale, 1.0
    losses, counts = list[Tensor](), list[Tensor]()
    for batch in micro_batches:
        with autocast(device, options.precision):
            loss, n = objective(state.model, batch)
        total = loss + _auxiliary(state, n, whole)
        if scale.dynamic and not counts:
            unit = power_above(float(n) * len(micro_batches))
        mark("forward")
        (total * (scale.value / unit) if scale.dynamic else total).backward()
        mark("backward")
        losses.append(loss.detach())
        counts.append(n)
    size = sum(objective.task.size(batch) for batch in micro_batches)
    numbers = (
        functools.reduce(operator.add, losses),
        functools.reduce(operator.add, counts),
        total_norm(state.optimizer.gradients()),
        size,
        functools.reduce(torch.minimum, counts),
    )
    return _as_one(numbers, device), scale.value / unit


def _as_one(numbers: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """(N,)   the numbers in float64, or in fp32 where a device has none."""
    kind = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack(
        [
            x.detach().to(device, kind)
            if isinstance(x, torch.Tensor)
            else torch.full((), x, dtype=kind, device=device)
            for x in numbers
        ]
    )


def _auxiliary(state: TrainState, count: Tensor, whole: Tensor | None) -> Tensor | float:
    """The parts' auxiliary losses (load balance of experts) as a sum, as the loss is: times the
    number of targets of the micro-batch, or of the step where parts were told its counts.
    """
    losses = [
        part.auxiliary * (count if whole is None or part not in state.ahead else whole)
        for part in state.balanced
        if part.auxiliary is not None
    ]
    return torch.stack(losses).sum() if losses else 0.0


def power_above(count: float) -> float:
    """The least power of two >= count; 1 for a count below 1."""
    return 2.0 ** math.ceil(math.log2(max(1.0, count)))
