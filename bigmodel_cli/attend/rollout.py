"""Which positions an answer is gathered from, through all layers: attention rollout.

It is a heuristic: it takes the residual stream for half of each layer, all heads for alike, and
leaves out what values and feed-forward networks do.
"""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.parts.kernels import weights
from bigmodel_cli.parts.watched import AttentionCall

ROLLOUT = "attention rollout (a heuristic)"


def rolled(calls: Sequence[AttentionCall], start: Tensor, row: int = 0) -> Tensor:
    """(T,)   the share of each position in what `start` (T,) reads (Abnar and Zuidema 2020).

    `calls` are those of self-attention over the same positions, in the order of the layers, whose
    batch's `row` is taken. Each layer's weights are averaged over heads and mixed half and half
    with the identity (the residual stream). From the last layer on it is a product of a row and a
    matrix, so that the layers' matrices are never multiplied.
    """
    shares = start.double()
    for call in reversed(calls):
        shares = 0.5 * shares + 0.5 * _read(call, row, shares)
    return shares


def _read(call: AttentionCall, row: int, shares: Tensor) -> Tensor:
    """(T,) -> (S,)   what queries with these shares read, as a mean over heads, one at a time."""
    heads, groups = call.q.shape[1], call.k.shape[1]
    total = torch.zeros(call.k.shape[2], dtype=torch.float64, device=call.q.device)
    shares = shares.to(total.device)
    one = slice(row, row + 1)
    signs = [1.0] * heads
    if call.minus is not None:
        first = heads // 2
        minus = call.minus.flatten().tolist()
        signs = [1.0] * first + [-minus[i % len(minus)] for i in range(first)]
    for head, sign in enumerate(signs):
        key = head * groups // heads
        found = weights(
            call.q[one, head : head + 1],
            call.k[one, key : key + 1],
            call.spec,
            segments=None if call.segments is None else call.segments[one],
            key_mask=None if call.key_mask is None else call.key_mask[one],
            bias=None if call.bias is None else call.bias[head : head + 1],
            sinks=None if call.sinks is None else call.sinks[head : head + 1],
        )[0, 0]
        total += sign * (shares @ found.double())
    return total / (heads if call.minus is None else heads // 2)
