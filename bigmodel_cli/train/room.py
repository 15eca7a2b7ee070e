"""Whether a batch's activations fit the device, checked before training,
or which micro-batch does.
"""

from __future__ import annotations

import math

import numpy as np

from bigmodel_cli import checkpoints
from bigmodel_cli.assemble import Outline, outline
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import counted, quantity
from bigmodel_cli.data import Split, input_of
from bigmodel_cli.device import total_memory
from bigmodel_cli.errors import DataError, SpecError, Unfit
from bigmodel_cli.lazy import Module, torch
from bigmodel_cli.models.stacks import in_whole
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.plan import Memory, memory_of
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import batch_norm_explained

PATCH = 16
"""Least pixels per position of a dense layer of an image: it reads patches, or smaller maps."""
KEPT = 4
"""Numbers kept for the backward pass per output of a layer, generously: norms, activations,
attention scores.
"""


def check_enough(spec: Spec, train: Split) -> None:
    """Raise `DataError` where the training split does not fill a batch."""
    if spec.train.batch_tokens is None and len(train) < spec.train.batch_size:
        raise DataError(
            f"the train split has {counted(len(train), 'sample')}, fewer than train.batch_size"
            f" {spec.train.batch_size}; use more data or a smaller batch"
        )


def check_step(
    spec: Spec, info: DatasetInfo, train: Split, model: Module, device: torch.device
) -> None:
    """Raise `SpecError` where a step's activations do not fit the device, or batch norm lacks
    values.

    They are found on the meta device, which takes a second or more, only where a rough count comes
    near the device's memory, or batch normalisation has one sample.
    """
    alone = spec.train.micro == 1 and any(
        isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules()
    )
    if not alone and _rough_bytes(spec, info, train, model) < total_memory(device):
        return
    lengths = train.longest_rows()
    with batch_norm_explained():
        memory = memory_of(spec, info, outline(spec, info), lengths)
    check_fits(spec, device, memory, max(lengths, default=1))


def check_fits(spec: Spec, device: torch.device, memory: Memory, longest: int) -> None:
    """Raise `Unfit` where a step does not fit the device, naming the largest micro-batch that does.

    Activations count half where they may be kept in half precision.
    """
    options, room, state = spec.train, total_memory(device), memory.state
    least = memory.activations if options.precision == "fp32" else memory.activations // 2
    if state + least <= room:
        return
    by_tokens = options.batch_tokens is not None
    share = (room - state) * 0.9 / least  # of the micro-batch: activations grow with its rows
    fitting = max((m for m in _divisors(options.batch) if m <= share * options.micro), default=0)
    if fitting >= (longest if by_tokens else 1):
        remedy = (
            f"set train.micro_batch_size: {fitting}, which needs about"
            f" {quantity(state + least * fitting // options.micro, 'B')}"
        )
    else:
        remedy = "no micro-batch fits: make the model, its context or its images smaller"
    if options.checkpointing == "none":
        remedy += ", or set train.checkpointing: blocks, which keeps less"
    raise Unfit(
        f"train.{'batch_tokens' if by_tokens else 'batch_size'}: a step of {options.micro:,}"
        f" {'tokens' if by_tokens else 'samples'} at once needs about"
        f" {quantity(state + least, 'B')}, {quantity(least, 'B')} of them for activations, and"
        f" {device} has {quantity(room, 'B')}; {remedy}"
    )


def check_readable(state: TrainState) -> None:
    """Raise `SpecError` where a checkpoint would have more tensors than can be read."""
    weights = [t.dim() for t in state.model.state_dict().values()]
    resuming = [t.dim() for t in state.optimizer.state_dict().values()]
    resuming += [p.dim() for p in state.model.parameters()] if state.ema else []
    _check_listed(weights, resuming)


def check_listed(spec: Spec, found: Outline) -> None:
    """The same for a model without storage."""
    held = [(name, t.dim()) for name, t in found.short.state_dict().items()]
    weights = in_whole(found.stacks, held, lambda x: x[0], lambda x, name: (name, x[1]))
    copies = spec.train.optimizer.state_copies
    moved = [w for w in found.weights if w.tensor.requires_grad]
    resuming = [w.tensor.dim() for w in moved for _ in range(copies(w.role))]
    resuming += [w.tensor.dim() for w in found.weights] if spec.train.ema is not None else []
    _check_listed([axes for _, axes in weights], resuming)


def _check_listed(weights: list[int], resuming: list[int]) -> None:
    if not checkpoints.can_list(weights, resuming):
        raise SpecError(
            f"model: a checkpoint would hold {len(weights) + len(resuming):,} tensors, with the"
            " optimizer's and the average's, more than can be read back; take fewer blocks or"
            " layers"
        )


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return [*small, *(number // n for n in small)]


def _rough_bytes(spec: Spec, info: DatasetInfo, train: Split, model: Module) -> int:
    """A generous estimate of a micro-batch's activations: each weight's output at each position."""
    pixels = input_of(info).pixels
    length = int(np.max(train.lengths)) if train.lengths is not None else info.context or 1
    positions = pixels // PATCH + 1 if pixels else length
    outputs = sum(
        p.shape[0] * (pixels if p.dim() == 4 else positions)
        for p in model.parameters()
        if p.dim() > 1
    )
    return 4 * KEPT * outputs * spec.train.rows(length if train.lengths is not None else None)
