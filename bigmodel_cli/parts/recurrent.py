"""What mixers with a recurrent state share: they go from left to right, with a small cache."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from bigmodel_cli.config import Count
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyMixerOptions, States
from bigmodel_cli.parts.matrices import OwnMatrices
from bigmodel_cli.parts.mixing import MixingCall, MixingWatcher
from bigmodel_cli.shares import ALONE, Team

Kernel = Annotated[int, Field(gt=1, le=10**9)]
"""Positions that a convolution spans, its own one included."""
Chunk = Annotated[
    Count,
    Field(description="positions computed together; changes speed and memory, not the result"),
]


class RecurrentOptions(AnyMixerOptions):
    """Options of a mixer that goes from left to right."""

    type: str

    def build(self, layer: LayerContext) -> Module:
        if not layer.causal:
            raise ValueError(
                f"type: {self.type} goes from left to right; an encoder's mixers see both sides"
            )
        return self.build_causal(layer)

    @abstractmethod
    def build_causal(self, layer: LayerContext) -> Module:
        """The module for this layer of a decoder; raises as `build` does."""


@dataclass
class RecurrentCache:
    """The last inputs of the short convolution (B, kernel - 1, C) and the state (B, H, N, P)."""

    past: Tensor | None = None
    state: Tensor | None = None


class RecurrentMixer(OwnMatrices):
    """(B, T, C) -> (B, T, C)   each position sees those before it through a state."""

    needs_max_len = False
    mixing_watcher: MixingWatcher | None = None
    team: Team = ALONE

    def watched(self, call: Callable[[], MixingCall], output: Tensor) -> Tensor:
        """`output`, or what the watcher of `call`, which is of it, puts in its place."""
        if self.mixing_watcher is None:
            return output
        changed = self.mixing_watcher(call())
        return output if changed is None else changed

    def new_cache(self, batch: int, max_len: int) -> RecurrentCache:
        return RecurrentCache()

    def states(self) -> States:
        """By name: "conv", the last inputs of the short convolution, and "recurrent"."""
        raise NotImplementedError

    def cache_of(self, tensors: dict[str, Tensor]) -> RecurrentCache:
        return RecurrentCache(tensors.get("conv"), tensors.get("recurrent"))

    def tensors_of(self, cache: RecurrentCache) -> dict[str, Tensor]:
        found = {"conv": cache.past, "recurrent": cache.state}
        return {name: t for name, t in found.items() if t is not None}

    def forward(
        self,
        x: Tensor,
        sequence: SequenceInfo = SINGLE_DOCUMENT,
        cache: RecurrentCache | None = None,
    ) -> Tensor:
        """Mix the positions; with a cache, x continues its positions."""
        return self.mix(x, sequence, cache or RecurrentCache())

    def mix(self, x: Tensor, sequence: SequenceInfo, cache: RecurrentCache) -> Tensor:
        """The same; the state after x is written into `cache`."""
        raise NotImplementedError


def decay_parameters(heads: int) -> tuple[nn.Parameter, nn.Parameter]:
    """(dt_bias, log_a), (H) each: the first step sizes and decay rates of Mamba-2 (its code).

    Step sizes, softplus(dt_bias), lie between 0.001 and 0.1, and A between 1 and 16.
    """
    dt = torch.exp(torch.rand(heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(
        min=1e-4
    )
    log_a = torch.empty(heads).uniform_(1, 16).log()
    return nn.Parameter(dt + torch.log(-torch.expm1(-dt))), nn.Parameter(log_a)
