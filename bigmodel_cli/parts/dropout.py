"""Dropout with a quarter of the random numbers: each 64-bit number decides four elements."""

from __future__ import annotations

from bigmodel_cli.lazy import F, Tensor, torch

STEPS = 1 << 16
"""On a CPU probabilities are multiples of 1 / STEPS."""


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """(...) -> (...)   dropout (Srivastava et al. 2014); identity unless `training`.

    PyTorch draws a number for every element, on one core: a third of the time of a small
    Transformer's training step. Here a number serves four, each compared with 16 bits of it; what
    is kept is divided by the probability that those bits give. It is drawn for the whole batch from
    the global generator, so unlike masks (draw.py) it depends on the micro-batches.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, True)
    dropped = min(STEPS - 1, max(1, round(p * STEPS)))
    bits = (
        torch.empty(-(-x.numel() // 4), dtype=torch.int64)
        .random_(-(1 << 63), None)
        .view(torch.int16)
    )
    kept = (bits[: x.numel()] >= dropped - STEPS // 2).view(x.shape)
    return x * kept.to(x.dtype).mul_(STEPS / (STEPS - dropped))
