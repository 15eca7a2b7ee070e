"""The passes of a step: every micro-batch forward and backward, its loss and gradients as sums."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence

from bigmodel_cli.device import autocast
from bigmodel_cli.distributed import world
from bigmodel_cli.draw import KEY, drawing
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.optim import total_norm
from bigmodel_cli.parts.row_share import rows_divided
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.state import Before, TrainState

REMEDY = "set a smaller train.micro_batch_size, or a smaller train.batch_size"
ROWS, GENERATOR = "rows", "generator"
Mark = Callable[[str], None]
"""Called with the name of each part of a step as it ends: "forward", "backward", "update"."""


def unmarked(part: str) -> None:
    """Nobody times the step."""


def forward(
    state: TrainState,
    objective: Objective,
    options: TrainOptions,
    batch: dict[str, Tensor],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The summed loss of a micro-batch, and the number of its targets; of this process's positions,
    where others have the rest of the rows.

    What layers draw depends on its rows alone, however often it passes.
    """
    cached = holds_rounded(options, state.sharding is not None)
    with (
        autocast(device, options.precision, cached),
        drawing(row_keys(batch, options, device)),
        rows_divided(state.context),
    ):
        return objective(state.model, batch)


def holds_rounded(options: TrainOptions, divided: bool) -> bool:
    """Whether a pass holds all weights once more, in the precision of products: not where it is to
    hold little, since activations are computed again, or other processes have the rest of a weight.
    """
    return not divided and options.checkpointing == "none"


def row_keys(
    batch: dict[str, Tensor], options: TrainOptions, device: torch.device
) -> Tensor | None:
    """(B,)   what layers draw by; None where torch's generator draws."""
    return batch.get(KEY) if drawn_by(options, device) == ROWS else None


def drawn_by(options: TrainOptions, device: torch.device) -> str:
    """What layers draw by: `ROWS`, or torch's `GENERATOR` in a compiled network, and, where nobody
    compares with other processes, on a GPU, whose own kernels are faster.
    """
    if options.compile == "on":
        return GENERATOR
    if device.type != "cpu" and world().alone and not options.deterministic:
        return GENERATOR
    return ROWS


def counted(
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
            targets.append(forward(state, objective, options, batch, device)[1])
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
        loss, n = forward(state, objective, options, batch, device)
        total = loss + auxiliary(state, n, whole)
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
    return as_one(numbers, device), scale.value / unit


def as_one(numbers: Sequence[Tensor | float], device: torch.device) -> Tensor:
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


def auxiliary(state: TrainState, count: Tensor, whole: Tensor | None) -> Tensor | float:
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
