"""Attention on a CPU with gradients, in blocks of queries: in bf16 twice PyTorch's kernel's speed,
and in fp32 with dropout that is drawn by row.

Without matrix units PyTorch's fused kernel multiplies bf16 many times slower than oneDNN's batched
products do. These give bf16, so that scores would be rounded before the softmax; what the rounding
left out comes from a second product (`_scores`), which makes the scores as good as in fp32. Where
positions see no later ones, what follows a block's last query is not computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

from bigmodel_cli.lazy import Tensor, torch

ROWS = 128
"""Queries of a block."""


def attention_in_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None = None,
    kept: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """q (B, H, T, D), k (B, H, S, D), v (B, H, S, E) in bf16 or fp32 -> (B, H, T, E).

    `mask` broadcasts to (B, H, T, S): bool, or what is added to the scores, without a gradient.
    Where `causal` there is none, and T is S. `kept` (B, H, T, S) and `factor` are of dropout. For
    the backward pass the inputs are kept, and in bf16 the weights are computed again; in fp32 they
    are kept, as PyTorch keeps them where there is dropout.
    """
    found: Tensor = _class().apply(q, k, v, scale, causal, mask, kept, factor)
    return found


def _blocks(queries: int, keys: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Each block's queries, and the keys that they see."""
    for first in range(0, queries, ROWS):
        end = min(first + ROWS, queries)
        yield slice(first, end), slice(0, end if causal else keys)


def _product(a: Tensor, b: Tensor, factor: float, less: Tensor | None = None) -> Tensor:
    """factor * a @ b, minus `less`, rounded once."""
    if less is None:
        return torch.baddbmm(a.new_zeros(1, 1, 1), a, b, beta=0, alpha=factor)
    return torch.baddbmm(less, a, b, beta=-1, alpha=factor)


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """(N, t, D), (N, s, D) -> (N, t, s) fp32   the product; of bf16 the rounded and the rest."""
    keys = k.transpose(1, 2)
    rounded = _product(q, keys, scale)
    if q.dtype == torch.float32:
        return rounded
    return rounded.float().add_(_product(q, keys, scale, less=rounded).float())


def _part(x: Tensor, rows: slice, columns: slice) -> Tensor:
    """That part of (b, h, t, s), in which any size may be 1."""
    return x[..., rows if x.shape[-2] > 1 else slice(None), columns]


def _weights(
    q: Tensor, k: Tensor, scale: float, causal: bool, mask: Tensor | None, heads: int
) -> Tensor:
    """(N, t, s) fp32   what the queries of a block make of the keys that they see."""
    scores = _scores(q, k, scale)
    if causal:
        last = scores[..., -q.shape[1] :]
        last += torch.full(last.shape[1:], -math.inf, device=last.device).triu_(1)
    if mask is not None:
        by_row = scores.unflatten(0, (-1, heads))  # (B, H, t, s)
        if mask.dtype == torch.bool:
            by_row.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        else:
            by_row += finite(mask)
    return scores.softmax(-1)


def finite(mask: Tensor) -> Tensor:
    """What is added to scores, so that a row that sees nothing sees all alike, and is not NaN."""
    return mask.clamp(min=torch.finfo(mask.dtype).min)


def _dropped(w: Tensor, kept: Tensor | None) -> Tensor:
    """Weights or their gradient (N, t, s), of which dropout keeps (B, H, t, s); the factor is left
    to the products, where it costs nothing.
    """
    return w if kept is None else w * kept.flatten(0, 1).view(torch.uint8)


@functools.cache
def _class() -> Any:
    """The class; torch is imported by now."""

    class InBlocks(torch.autograd.Function):
        """Softmax attention and its gradient (Dao et al. 2022, appendix B.2)."""

        @staticmethod
        def forward(
            context: Any,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            scale: float,
            causal: bool,
            mask: Tensor | None,
            kept: Tensor | None,
            factor: float,
        ) -> Tensor:
            """The weighted sums."""
            shape, heads = q.shape, q.shape[1]
            q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
            context.options = scale, causal, heads, factor
            found, weights = [], list[Tensor]()
            for rows, columns in _blocks(q.shape[1], k.shape[1], causal):
                own = None if mask is None else _part(mask, rows, columns)
                w = _weights(q[:, rows], k[:, columns], scale, causal, own, heads)
                chosen = None if kept is None else kept[..., rows, columns]
                found.append(_product(_dropped(w, chosen).to(v.dtype), v[:, columns], factor))
                if q.dtype == torch.float32:
                    weights.append(w)
            context.save_for_backward(q, k, v, mask, kept, *weights)
            y = found[0] if len(found) == 1 else torch.cat(found, 1)
            return y.view(*shape[:3], v.shape[-1])

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, gradient: Tensor) -> Any:
            """Of queries, keys and values."""
            q, k, v, mask, kept, *weights = context.saved_tensors
            scale, causal, heads, factor = context.options
            g = gradient.reshape(-1, *gradient.shape[2:]).to(q.dtype)
            of_q: list[Tensor] = []
            of_k, of_v = _Sum(k), _Sum(v)
            for i, (rows, columns) in enumerate(_blocks(q.shape[1], k.shape[1], causal)):
                own = None if mask is None else _part(mask, rows, columns)
                chosen = None if kept is None else kept[..., rows, columns]
                queries, keys = q[:, rows], k[:, columns]
                w = weights[i] if weights else _weights(queries, keys, scale, causal, own, heads)
                of_w = _product(g[:, rows], v[:, columns].transpose(1, 2), factor)
                of_w = _dropped(of_w.float(), chosen)
                of_scores = torch._softmax_backward_data(of_w, w, -1, w.dtype).to(q.dtype)
                w = _dropped(w, chosen).to(q.dtype)
                of_q.append(_product(of_scores, keys, scale))
                of_k.add(_product(of_scores.transpose(1, 2), queries, scale), columns)
                of_v.add(_product(w.transpose(1, 2), g[:, rows], factor), columns)
            whole = of_q[0] if len(of_q) == 1 else torch.cat(of_q, 1)
            gradients = (whole, of_k.found(), of_v.found())
            return *(x.unflatten(0, (-1, heads)) for x in gradients), None, None, None, None, None

    return InBlocks


class _Sum:
    """The sum of the blocks' gradients of x (N, S, D), in fp32 where there are several."""

    def __init__(self, x: Tensor) -> None:
        self.like = x
        self.alone: Tensor | None = None
        self.several: Tensor | None = None

    def add(self, part: Tensor, columns: slice) -> None:
        """Add the gradient of those columns; a block that sees fewer is followed by others."""
        if self.alone is None and self.several is None and part.shape == self.like.shape:
            self.alone = part
            return
        if self.several is None:
            self.several = torch.zeros_like(self.like, dtype=torch.float32)
        self.several[:, columns] += part

    def found(self) -> Tensor:
        """(N, S, D) in the dtype of x."""
        if self.several is None:
            assert self.alone is not None
            return self.alone
        if self.alone is not None:
            self.several += self.alone
        return self.several.to(self.like.dtype)
