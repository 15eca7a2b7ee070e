"""Cross-entropy over a vocabulary in pieces, without all logits in fp32; computes its gradient too.

PyTorch's keeps log-probabilities of every target in fp32 and passes over them several times; for a
vocabulary of some thousands that is a third of the time of a small model's step on a CPU, and for
50,000 the largest tensor of all on a GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.config import PADDING
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.logits.fused import compiled
from bigmodel_cli.logits.late import LateLogits
from bigmodel_cli.logits.pieces import constant_without_gradients, summed_in_pieces
from bigmodel_cli.logits.share import LogitsShare, share_entropy
from bigmodel_cli.products import is_plain

PIECE = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Logits in fp32 at once: as many as fit a core's cache, or keep a GPU busy."""
EVEN = 64
"""Products of matrices with a multiple of so many rows are the fastest on a GPU."""


def cross_entropy(logits: Tensor | LateLogits, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """logits (..., V), targets (...) -> ()   summed cross-entropy in nats (fp32); -1 is ignored.

    Label smoothing (Szegedy et al. 2016) spreads `smoothing` of the probability evenly over all V.
    Of late logits a piece at a time is in memory, and those of ignored targets are never computed.
    """
    if isinstance(logits, LateLogits):
        late, wanted = _of_targets(logits.flat(), targets.flatten())
        head: Any = late.head
        own = head if isinstance(head, LogitsShare) else None
        if own is not None or _is_plain(head):
            hidden = late.hidden if own is None else own.team.enter(late.hidden)
            inputs = constant_without_gradients(hidden, head.weight, head.bias)
            of_rows: Tensor = _late_function().apply(*inputs, wanted, smoothing, late)
            return of_rows
        return summed_in_pieces(
            lambda rows, part: cross_entropy(part, wanted[rows], smoothing), late
        )
    y: Tensor = _function().apply(logits.flatten(0, -2), targets.flatten(), smoothing)
    return y


def _of_targets(late: LateLogits, targets: Tensor) -> tuple[LateLogits, Tensor]:
    """The rows whose targets are not ignored.

    On a GPU all rows: to count them would stop the host in each step.
    """
    if targets.device.type != "cpu":
        return late, targets
    at = (targets != PADDING).nonzero()[:, 0]
    return (late, targets) if len(at) == len(targets) else (late[at], targets[at])


def _is_plain(head: Any) -> bool:
    """Whether a head is one product with its own weight, which nobody watches."""
    watched = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks
    return is_plain(head) and not watched


def token_nll(logits: Tensor | LateLogits, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits (..., V), targets (...) -> (nats (...) float64, argmax is target (...)).

    0 and False where a target is -1.
    """
    wanted = targets.flatten()
    nats = torch.zeros(len(wanted), dtype=torch.float64, device=logits.device)
    right = torch.zeros(len(wanted), dtype=torch.bool, device=logits.device)
    if isinstance(logits, LateLogits):
        late = logits.flat()
        for rows in late.bounds():
            _judge(late.of(late.hidden[rows]), wanted[rows], nats[rows], right[rows])
    else:
        _judge(logits.flatten(0, -2), wanted, nats, right)
    real = wanted != PADDING
    return nats.masked_fill(~real, 0.0).view(targets.shape), (right & real).view(targets.shape)


def _judge(logits: Tensor, targets: Tensor, nats: Tensor, right: Tensor) -> None:
    """Fill in nats and whether the argmax is the target, row by row."""
    rows = max(1, PIECE.get(logits.device.type, 1 << 24) // logits.shape[-1])
    kind = torch.promote_types(logits.dtype, torch.float32)
    for first in range(0, len(logits), rows):
        x, target = logits[first : first + rows].to(kind), targets[first : first + rows]
        picked = x.gather(1, target.clamp(min=0)[:, None])[:, 0]
        nats[first : first + rows] = x.logsumexp(-1) - picked
        right[first : first + rows] = x.argmax(-1) == target


@functools.cache
def _function() -> Any:
    """The class; torch is imported by now."""

    class CrossEntropy(torch.autograd.Function):
        """The loss is a sum, so its gradient is known up to a factor in the forward pass."""

        @staticmethod
        def forward(context: Any, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
            gradient = torch.empty_like(logits) if logits.requires_grad else None
            context.gradient = gradient
            return _pieces(logits.detach(), targets, smoothing, gradient)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, factor: Tensor) -> tuple[Tensor, None, None]:
            gradient: Tensor = context.gradient
            del context.gradient
            return gradient.mul_(factor.to(gradient.dtype)), None, None

    return CrossEntropy


def _pieces(
    logits: Tensor,
    targets: Tensor,
    smoothing: float,
    gradient: Tensor | None,
    scale: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """The loss; `gradient`, which may be `logits`, gets softmax - (1 - s) * one-hot - s / V.

    The logits are yet to be multiplied by `scale` and squashed into +-`cap`.
    """
    vocab = logits.shape[-1]
    rows = max(1, PIECE.get(logits.device.type, 1 << 24) // vocab)
    kind = torch.promote_types(logits.dtype, torch.float32)
    total = torch.zeros((), dtype=kind, device=logits.device)
    for first in range(0, len(logits), rows):
        x, target = logits[first : first + rows].to(kind, copy=True), targets[first : first + rows]
        real = (target != PADDING)[:, None]  # (N, 1)
        index = target.clamp(min=0)[:, None]
        x, slope = _squashed(x, scale, cap)
        x -= x.amax(-1, keepdim=True)
        picked, mean = x.gather(1, index), x.mean(-1, keepdim=True) if smoothing else 0.0
        sums = x.exp_().sum(-1, keepdim=True)
        loss = sums.log() - (1 - smoothing) * picked - smoothing * mean
        total += loss.masked_fill(~real, 0.0).sum()
        if gradient is not None:
            x *= real / sums
            if smoothing:
                x -= real.to(kind) * (smoothing / vocab)
            x.scatter_add_(1, index, real.to(kind) * (smoothing - 1))
            gradient[first : first + rows] = x if slope is None else x.mul_(slope)
    return total


def _of_share(
    logits: Tensor, targets: Tensor, smoothing: float, gradient: Tensor | None, late: LateLogits
) -> Tensor:
    """`_pieces` where these are the logits of a part of the vocabulary."""
    assert isinstance(late.head, LogitsShare)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    x, slope = _squashed(wide, late.scale, late.cap)
    loss, found = share_entropy(x, slope, targets, smoothing, late.head)
    if gradient is not None:
        gradient.copy_(found)
    return loss


def _squashed(x: Tensor, scale: float, cap: float | None) -> tuple[Tensor, Tensor | float | None]:
    """The finished logits in place of x, and their derivative where that is not 1."""
    if scale != 1.0:
        x *= scale
    if cap is None:
        return x, None if scale == 1.0 else scale
    x = x.div_(cap).tanh_()
    slope = (1 - x.square()).mul_(scale)
    return x.mul_(cap), slope


@functools.cache
def _late_function() -> Any:
    """The class; torch is imported by now."""

    class LateCrossEntropy(torch.autograd.Function):
        """Head and loss in one; all gradients are known up to a factor in the forward pass."""

        @staticmethod
        def forward(
            context: Any,
            hidden: Tensor,
            weight: Tensor,
            bias: Tensor | None,
            targets: Tensor,
            smoothing: float,
            late: LateLogits,
        ) -> Tensor:
            gradients = _Gradients.of(hidden, weight, bias, context.needs_input_grad)
            total = gradients.fill(hidden.detach(), targets, smoothing, late)
            context.gradients = gradients.x, gradients.weight, gradients.bias
            context.kinds = [None if x is None else x.dtype for x in (hidden, weight, bias)]
            return total

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, factor: Tensor) -> Any:
            kept = zip(context.gradients, context.kinds, strict=True)
            del context.gradients
            found = (None if g is None else g.mul_(factor).to(kind) for g, kind in kept)
            return *found, None, None, None

    return LateCrossEntropy


@dataclass
class _Gradients:
    """Those of a loss's hidden states, weight and bias, as they are filled.

    Where the weight is copied for the products, since these are in another precision, rows of zeros
    make their number a multiple of `EVEN`: their logits and gradients are zeros, and nobody sees
    them.
    """

    vocab: int
    matrix: Tensor  # (V or more, C), as it is multiplied
    offset: Tensor | None
    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @staticmethod
    def of(hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: Any) -> _Gradients:
        """Empty ones, of what is needed."""
        where, (vocab, width) = hidden.device.type, weight.shape
        cast = where != "meta" and torch.is_autocast_enabled(where)
        kind = torch.get_autocast_dtype(where) if cast else hidden.dtype
        matrix = weight.detach()
        if kind != weight.dtype:
            matrix = weight.new_zeros(-(-vocab // EVEN) * EVEN, width, dtype=kind)
            matrix[:vocab] = weight.detach()
        return _Gradients(
            vocab,
            matrix,
            None if bias is None else bias.detach().to(kind),
            torch.empty_like(hidden) if needed[0] else None,
            _sum_of(weight) if needed[1] else None,
            _sum_of(bias) if bias is not None and needed[2] else None,
        )

    def fill(self, hidden: Tensor, targets: Tensor, smoothing: float, late: LateLogits) -> Tensor:
        """The loss; the logits of each piece become their gradient in place."""
        kind = self.matrix.dtype
        wide = torch.promote_types(kind, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        wanted = any(g is not None for g in (self.x, self.weight, self.bias))
        most = min(late.rows, len(hidden))
        room = hidden.new_empty(most, self.matrix.shape[0], dtype=kind)  # used by all pieces
        with torch.autocast(_device(hidden), enabled=False):
            for rows in late.bounds():
                x = hidden[rows].to(kind)
                all_of_it = torch.mm(x, self.matrix.T, out=room[: len(x)])
                y = all_of_it.narrow(1, 0, self.vocab)
                if self.offset is not None:
                    y += self.offset
                gradient = y if wanted else None
                if isinstance(late.head, LogitsShare):
                    total += _of_share(y, targets[rows], smoothing, gradient, late)
                elif late.fused:
                    kernel = compiled()
                    total += kernel(y, targets[rows], smoothing, wanted, late.scale, late.cap)
                else:
                    total += _pieces(y, targets[rows], smoothing, gradient, late.scale, late.cap)
                self.add(rows, x, all_of_it)
        return total

    def add(self, rows: slice, x: Tensor, gradient: Tensor) -> None:
        """Those of a piece, whose logits have this gradient (n, V or more)."""
        if self.x is not None:
            self.x[rows] = gradient @ self.matrix
        if self.weight is not None:
            if self.weight.dtype == gradient.dtype:
                self.weight.addmm_(gradient.T, x)
            else:
                self.weight += (gradient.T @ x)[: self.vocab]
        if self.bias is not None:
            self.bias += gradient.narrow(1, 0, self.vocab).sum(0, dtype=self.bias.dtype)


def _sum_of(weight: Tensor) -> Tensor:
    """Zeros for the sum of the pieces' gradients, in fp32 at least."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def _device(x: Tensor) -> str:
    return "cpu" if x.is_meta else x.device.type
