"""What a part hands to whoever watches it: the arguments of its attention, and what came out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bigmodel_cli.lazy import Tensor
from bigmodel_cli.parts.fused import AttentionSpec


class Called(Protocol):
    """What all calls of mixers say of their positions."""

    @property
    def keys(self) -> int:
        """How many positions are read (S)."""

    @property
    def memory(self) -> bool:
        """Whether they are of another sequence than the queries."""


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention, after positions and norms: nothing is copied.

    q (B, H, T, D), k (B, G, S, D), v (B, G, S, E); `segments`, `key_mask`, `bias` and `sinks` are
    those of `kernels.attend`. `output` (B, H, T, E) is what the kernel returned, and `log_sums`
    (B, H, T) the log-sum-exp of each query's scores, with its sink, where the kernel gave it. Where
    `minus` is given (differential attention), the second half of the heads counts that much less
    than nothing: the weights of head h are those of map h minus `minus` times those of map h + H /
    2, and so is the output. `memory`: keys are of another sequence than queries (cross-attention).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    spec: AttentionSpec
    output: Tensor
    segments: Tensor | None = None
    key_mask: Tensor | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
    minus: Tensor | None = None
    memory: bool = False
    log_sums: Tensor | None = None

    @property
    def keys(self) -> int:
        """How many positions are read (S)."""
        return self.k.shape[2]

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return self.spec.scale or 1 / math.sqrt(self.q.shape[-1])


Watcher = Callable[[AttentionCall], Tensor | None]
"""Is given each call; a tensor that it returns takes the place of the output (a head cut out)."""


@dataclass(frozen=True)
class RoutingCall:
    """Which of `experts` the tokens took: their numbers and their weights (B, T, k).

    `shared` are experts beside them that every token takes; `dropped` is how many choices no expert
    had room for, and `real` (B, T) is False for padding (None: nowhere).
    """

    chosen: Tensor
    weights: Tensor
    experts: int
    shared: int = 0
    dropped: int = 0
    real: Tensor | None = None


RoutingWatcher = Callable[[RoutingCall], Tensor | None]
"""Is given each call; a tensor that it returns takes the place of the weights (an expert cut out).
"""
