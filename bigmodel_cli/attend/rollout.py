"""Which positions an answer is gathered from, through all layers: attention rollout.

It is a heuristic: it takes the residual stream for half of each layer, all heads for alike, and
leaves out what values and feed-forward networks do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.attend.tiles import Tiled
from bigmodel_cli.device import full_precision
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch

ROLLOUT = "attention rollout (a heuristic)"
REMARK = (
    "a heuristic: half of each layer is its residual stream, heads count alike, and what values and"
    " feed-forward networks do is left out"
)


def rolled(layers: Sequence[Tiled], start: Tensor) -> Tensor:
    """(T,)   the share of each position in what `start` (T,) reads (Abnar and Zuidema 2020).

    `layers` are those of self-attention over the same positions, in the order of the forward pass.
    Each one's weights are averaged over heads and mixed half and half with the identity (the
    residual stream). From the last layer on it is a product of a row and a matrix, so that layers'
    matrices are never multiplied, and never whole in memory.
    """
    shares = start.double().cpu()
    for tiled in reversed(layers):
        shares = 0.5 * shares + 0.5 * _read(tiled, shares) / tiled.heads
    return shares


def rollout_of(stack: Sequence[Stream], calls: int, query: int) -> dict[str, Any]:
    """The shares of all positions in what a query reads through all layers, as plain values.

    `calls` is how many parts of the model mix positions. Raises `SpecError` where not all of them
    are self-attention over the same positions, with weights that are shares.
    """
    if len(stack) < calls or len({tiled.keys for tiled in stack}) > 1:
        raise SpecError(
            "--rollout follows shares through self-attention over the same positions, and this"
            " model mixes positions in other ways too; leave it out"
        )
    if any(tiled.signed for tiled in stack):
        raise SpecError("--rollout: the weights of this model are signed, and no shares")
    start = torch.zeros(stack[0].queries)
    start[query] = 1.0
    with torch.no_grad(), full_precision(stack[0].q.device):
        shares = rolled(stack, start)
    return {"query": query % len(start), "shares": shares.tolist(), "remark": REMARK}


def _read(tiled: Tiled, shares: Tensor) -> Tensor:
    """(T,) -> (S,)   what queries with these shares read, as a sum over heads."""
    total = torch.zeros(tiled.keys, dtype=torch.float64)
    for rows, _, keys, tile in tiled.walk():
        total[keys] += shares[rows] @ tile.sum(0).double().cpu()
    return total
