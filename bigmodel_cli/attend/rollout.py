"""Which positions an answer is gathered from, through all layers: attention rollout.

It is a heuristic: it takes the residual stream for half of each layer, all heads for alike, and
leaves out what values and feed-forward networks do.
"""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.attend.tiles import Tiled
from bigmodel_cli.lazy import Tensor, torch

ROLLOUT = "attention rollout (a heuristic)"


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


def _read(tiled: Tiled, shares: Tensor) -> Tensor:
    """(T,) -> (S,)   what queries with these shares read, as a sum over heads."""
    total = torch.zeros(tiled.keys, dtype=torch.float64)
    for rows, _, keys, tile in tiled.walk():
        total[keys] += shares[rows] @ tile.sum(0).double().cpu()
    return total
