"""FLOPs of what the mathematics needs, told by the parts while a network is counted.

How attention or a recurrence is computed (tiles, chunks, padded widths, a mask that hides half of
the scores) is not what it has to compute. So while somebody counts, on the meta device, these are
not computed at all: they tell their FLOPs (a multiply and an add are two), and their gradients'.
All other matrix products and convolutions are counted as they are called.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.lazy import Tensor, torch


@dataclass
class Tally:
    """FLOPs that were told so far."""

    flops: int = 0


_TALLIES: list[Tally] = []


@contextlib.contextmanager
def counting() -> Iterator[Tally]:
    """Inside, what runs on the meta device tells its FLOPs."""
    _TALLIES.append(Tally())
    try:
        yield _TALLIES[-1]
    finally:
        _TALLIES.pop()


def counted(x: Tensor) -> bool:
    """Whether work on x is to be told, not done."""
    return bool(_TALLIES) and x.is_meta


def told_attention(q: Tensor, k: Tensor, v: Tensor, pairs: int, *others: Tensor | None) -> Tensor:
    """(B, H, T, E), empty   q (B, H, T, D), k (B, G, S, D), v (B, G, S, E); `others` change scores.

    `pairs` of a query and a key that it sees are two products each: D for the score, E for the sum.
    Of each of them, the gradient of either factor is another one of the same size.
    """
    scores = 2 * q.shape[0] * q.shape[1] * pairs * q.shape[3]
    sums = 2 * q.shape[0] * q.shape[1] * pairs * v.shape[3]
    _TALLIES[-1].flops += scores + sums
    y = q.new_empty(*q.shape[:3], v.shape[3])
    products = ((0,), scores), ((1,), scores), ((2,), sums), ((0, 1), sums)  # the last: of weights
    return _told(y, (q, k, v, *others), *products)


def told_recurrence(
    q: Tensor, k: Tensor, v: Tensor, passes: int, *rates: Tensor
) -> tuple[Tensor, Tensor]:
    """(y (B, H, T, P), state (B, H, N, P)), empty   q, k (B, H, T, N), v (B, H, T, P).

    `passes` over the state at each position, of 2 N P FLOPs each: one to write, one to read (Dao
    and Gu 2024, equation 1; Katharopoulos et al. 2020), and another, of the delta rule, to read
    what is replaced (Yang et al. 2024, equation 2). That is linear in T; computing in chunks takes
    more, by the products inside each chunk. Gradients are twice as many.
    """
    batch, heads, length, width = k.shape
    flops = 2 * passes * batch * heads * length * width * v.shape[3]
    _TALLIES[-1].flops += flops
    y = _told(torch.empty_like(v), (q, k, v, *rates), ((0, 1, 2), 2 * flops))
    return y, k.new_empty(batch, heads, width, v.shape[3])


@functools.lru_cache(maxsize=256)
def pairs_seen(queries: int, keys: int, causal: bool, window: int | None) -> int:
    """How many pairs of a query and a key see one another; queries end where keys do."""
    total = 0
    for place in range(keys - queries, keys):  # of the query among the keys
        first = 0 if window is None else max(0, place - window + 1)
        last = place if causal else keys - 1
        if window is not None:
            last = min(last, place + window - 1)
        total += max(0, last - first + 1)
    return total


def _told(
    y: Tensor, inputs: tuple[Tensor | None, ...], *gradients: tuple[tuple[int, ...], int]
) -> Tensor:
    """y, whose backward pass tells its FLOPs: of each product, the numbers of the inputs any of
    whose gradients needs it, and what it takes.
    """
    found: Tensor = _telling().apply(y, gradients, _TALLIES[-1], *inputs)
    return found


@functools.cache
def _telling() -> Any:
    """The class; torch is imported by now."""

    class Telling(torch.autograd.Function):
        """Computes nothing."""

        @staticmethod
        def forward(
            context: Any, y: Tensor, gradients: Any, tally: Tally, *inputs: Tensor | None
        ) -> Tensor:
            """y as it is."""
            context.told = gradients, tally
            context.save_for_backward(*inputs)
            return y.view_as(y)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Any:
            """Empty gradients of the inputs."""
            gradients, tally = context.told
            needed = context.needs_input_grad[3:]
            tally.flops += sum(
                flops for which, flops in gradients if any(needed[number] for number in which)
            )
            saved = zip(context.saved_tensors, needed, strict=True)
            return (
                None,
                None,
                None,
                *(torch.empty_like(x) if wanted else None for x, wanted in saved),
            )

    return Telling
