"""Cross-entropy over a vocabulary in pieces, without all logits in fp32; computes its gradient too.

PyTorch's keeps log-probabilities of every target in fp32 and passes over them several times; for a
vocabulary of some thousands that is a third of the time of a small model's step on a CPU, and for
50,000 the largest tensor of all on a GPU.
"""

from __future__ import annotations

from typing import Any

from bigmodel_cli.config import PADDING
from bigmodel_cli.lazy import Tensor, torch

PIECE = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Logits in fp32 at once: as many as fit a core's cache, or keep a GPU busy."""


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """logits (..., V), targets (...) -> ()   summed cross-entropy in nats (fp32); -1 is ignored.

    Label smoothing (Szegedy et al. 2016) spreads `smoothing` of the probability evenly over all V.
    """
    y: Tensor = _function().apply(logits.flatten(0, -2), targets.flatten(), smoothing)
    return y


def token_nll(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits (..., V), targets (...) -> (nats (...) float64, argmax is target (...)).

    0 and False where a target is -1.
    """
    rows = max(1, PIECE.get(logits.device.type, 1 << 24) // logits.shape[-1])
    kind = torch.promote_types(logits.dtype, torch.float32)
    flat, wanted = logits.flatten(0, -2), targets.flatten()
    nats = torch.zeros(len(wanted), dtype=torch.float64, device=logits.device)
    right = torch.zeros(len(wanted), dtype=torch.bool, device=logits.device)
    for first in range(0, len(flat), rows):
        x, target = flat[first : first + rows].to(kind), wanted[first : first + rows]
        picked = x.gather(1, target.clamp(min=0)[:, None])[:, 0]
        nats[first : first + rows] = x.logsumexp(-1) - picked
        right[first : first + rows] = x.argmax(-1) == target
    real = wanted != PADDING
    return nats.masked_fill(~real, 0.0).view(targets.shape), (right & real).view(targets.shape)


_made: Any = None


def _function() -> Any:
    """The autograd function, made at the first use, since this file is imported before torch."""
    global _made
    if _made is None:

        class CrossEntropy(torch.autograd.Function):
            """The loss is a sum, so its gradient is known up to a factor in the forward pass."""

            @staticmethod
            def forward(context: Any, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
                total, gradient = _pieces(logits.detach(), targets, smoothing, logits.requires_grad)
                context.gradient = gradient
                return total

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(context: Any, factor: Tensor) -> tuple[Tensor, None, None]:
                gradient: Tensor = context.gradient
                del context.gradient
                return gradient.mul_(factor.to(gradient.dtype)), None, None

        _made = CrossEntropy
    return _made


def _pieces(
    logits: Tensor, targets: Tensor, smoothing: float, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss, and where wanted its gradient softmax - (1 - s) * one-hot - s / V."""
    vocab = logits.shape[-1]
    rows = max(1, PIECE.get(logits.device.type, 1 << 24) // vocab)
    kind = torch.promote_types(logits.dtype, torch.float32)
    total = torch.zeros((), dtype=kind, device=logits.device)
    gradient = torch.empty_like(logits) if wanted else None
    for first in range(0, len(logits), rows):
        x, target = logits[first : first + rows].to(kind, copy=True), targets[first : first + rows]
        real = (target != PADDING)[:, None]  # (N, 1)
        index = target.clamp(min=0)[:, None]
        x -= x.amax(-1, keepdim=True)
        picked, mean = x.gather(1, index), x.mean(-1, keepdim=True) if smoothing else 0.0
        sums = x.exp_().sum(-1, keepdim=True)
        loss = sums.log() - (1 - smoothing) * picked - smoothing * mean
        total += loss.masked_fill(~real, 0.0).sum()
        if gradient is not None:
            x *= real / sums
            if smoothing:
                x -= real * (smoothing / vocab)
            x.scatter_add_(1, index, real.to(kind) * (smoothing - 1))
            gradient[first : first + rows] = x
    return total, gradient
