"""Cross-entropy of a piece of logits as one or two kernels, for a GPU."""

from __future__ import annotations

import functools
from typing import Any

from bigmodel_cli.config import PADDING
from bigmodel_cli.lazy import Tensor, torch


def fused_piece(
    logits: Tensor,
    targets: Tensor,
    smoothing: float,
    wanted: bool,
    scale: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """()   the summed loss of logits (N, V), as `entropy` has it, in operations that a compiler
    joins: they read the logits as they are stored, and keep nothing else of their size.

    The gradient, if `wanted`, takes the logits' place. These are yet to be multiplied by `scale`
    and squashed into +-`cap`.
    """
    vocab, kind = logits.shape[-1], torch.promote_types(logits.dtype, torch.float32)
    real = (targets != PADDING)[:, None]  # (N, 1)
    own = torch.arange(vocab, device=logits.device) == targets[:, None]  # (N, V)
    x = logits.to(kind) * scale
    slope: Tensor | float = scale
    if cap is not None:
        x = (x / cap).tanh()
        x, slope = x * cap, (1 - x * x) * scale
    top = x.amax(-1, keepdim=True)
    sums = (x - top).exp().sum(-1, keepdim=True)
    norm = sums.log() + top
    loss = norm - (1 - smoothing) * torch.where(own, x, 0.0).sum(-1, keepdim=True)
    if smoothing:
        loss = loss - smoothing * x.mean(-1, keepdim=True)
    if wanted:
        off = (x - norm).exp() - smoothing / vocab
        gradient = torch.where(own, off - (1 - smoothing), off) * slope
        logits.copy_(gradient.masked_fill(~real, 0.0))
    return loss.masked_fill(~real, 0.0).sum()


@functools.cache
def compiled() -> Any:
    """`fused_piece`, compiled for each shape."""
    return torch.compile(fused_piece)
