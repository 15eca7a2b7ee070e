"""Gated short convolution: the mixer of hybrid models between a few attention layers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Count
from bigmodel_cli.lazy import Tensor, nn
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyMixerOptions
from bigmodel_cli.parts.mamba2 import RecurrentCache
from bigmodel_cli.parts.matrices import OwnMatrices
from bigmodel_cli.parts.recurrence import ShortConvolution
from bigmodel_cli.roles import Role, fused


class ConvolutionOptions(AnyMixerOptions):
    """A depthwise causal convolution gated on both sides (LFM2 2025, after Poli et al. 2023)."""

    type: Literal["convolution"] = "convolution"
    kernel: Count = Field(3, description="positions seen, the own one included")
    bias: bool = Field(False, description="learn biases")

    def build(self, layer: LayerContext) -> Convolution:
        if not layer.causal:
            raise ValueError(
                "type: convolution goes from left to right; an encoder's mixers see both sides"
            )
        if self.kernel < 2:
            raise ValueError("kernel: a convolution over positions spans at least 2")
        return Convolution(self, layer.dim)


class Convolution(OwnMatrices):
    """(B, T, C) -> (B, T, C)   out(c * conv(b * x)), with b, c, x = input(x) (LFM2 2025)."""

    needs_max_len = False

    def __init__(self, options: ConvolutionOptions, dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, 3 * dim, bias=options.bias)
        self.conv = ShortConvolution(dim, options.kernel, options.bias)
        self.out = nn.Linear(dim, dim, bias=options.bias)

    def weight_roles(self) -> dict[str, Role]:
        """The two gates and the value are separate matrices."""
        return {"input.weight": fused(*[self.out.in_features] * 3)}

    def new_cache(self, batch: int, max_len: int) -> RecurrentCache:
        return RecurrentCache()

    def forward(
        self,
        x: Tensor,
        sequence: SequenceInfo = SINGLE_DOCUMENT,
        cache: RecurrentCache | None = None,
    ) -> Tensor:
        """Mix the positions; with a cache, x continues its positions."""
        before, after, value = self.input(x).chunk(3, -1)
        y, past = self.conv(before * value, sequence, cache.past if cache is not None else None)
        if cache is not None:
            cache.past = past
        out: Tensor = self.out(after * y)
        return out
