"""Dropout with a quarter of the random numbers: each 64-bit number decides four elements."""

from __future__ import annotations

import functools
from typing import Any

from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.shares import ALONE, Team

STEPS = 1 << 16
"""On a CPU probabilities are multiples of 1 / STEPS."""


def dropout(x: Tensor, p: float, training: bool, team: Team = ALONE) -> Tensor:
    """(...) -> (...)   dropout (Srivastava et al. 2014); identity unless `training`.

    PyTorch draws a number for every element, on one core: a third of the time of a small
    Transformer's training step. Here a number serves four, each compared with 16 bits of it; what
    is kept is divided by the probability that those bits give. It is drawn for the whole batch from
    the global generator, so unlike masks (draw.py) it depends on the micro-batches. A `team` has
    equal shares of the last axis.
    """
    if not training or p == 0:
        return x
    if team.size > 1:
        return _of_share(x, p, team)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, True)
    found: Tensor = _dropping().apply(x, *drawn(x.shape, p))
    return found


def _of_share(x: Tensor, p: float, team: Team) -> Tensor:
    """(..., n) -> (..., n)   dropout of one's share of (..., n * size), drawn for all of it: all
    processes draw the same, and drop what one process by itself would.
    """
    kept, factor = drawn(torch.Size((*x.shape[:-1], x.shape[-1] * team.size)), p)
    own = kept.narrow(-1, team.rank * x.shape[-1], x.shape[-1]).to(x.device)
    found: Tensor = _dropping().apply(x, own, factor)
    return found


def drawn(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """Which elements are kept (bool, on the CPU), and what they are multiplied by."""
    dropped = min(STEPS - 1, max(1, round(p * STEPS)))
    count = shape.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    kept = (bits.view(torch.int16)[:count] >= dropped - STEPS // 2).view(shape)
    return kept, STEPS / (STEPS - dropped)


def applied(x: Tensor, kept: Tensor, factor: float) -> Tensor:
    """(...) -> (...)   what is kept times the factor; 0 elsewhere."""
    return x * kept.to(x.dtype).mul_(factor)


@functools.cache
def _dropping() -> Any:
    """The class; torch is imported by now."""

    class Dropping(torch.autograd.Function):
        """Keeps a byte for each element, where autograd would keep a number."""

        @staticmethod
        def forward(context: Any, x: Tensor, kept: Tensor, factor: float) -> Tensor:
            """What is kept."""
            context.save_for_backward(kept)
            context.factor = factor
            return applied(x, kept, factor)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
            """Of what is kept."""
            (kept,) = context.saved_tensors
            return applied(gradient, kept, context.factor), None, None

    return Dropping
