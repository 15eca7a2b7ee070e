"""Differential attention: the difference of two attention maps cancels their common noise."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field

from bigmodel_cli.config import Count, Fraction
from bigmodel_cli.lazy import F, Tensor, nn, torch
from bigmodel_cli.parts.attending import AttentionPart, KVCache
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyMixerOptions
from bigmodel_cli.parts.kernels import AttentionSpec
from bigmodel_cli.parts.position import NoPositionOptions, RotaryOptions
from bigmodel_cli.roles import Role, fused
from bigmodel_cli.shares import PARTIAL, Run, Shares, Team, by_inputs, by_outputs


class DifferentialOptions(AnyMixerOptions):
    """Differential attention (Ye et al. 2024): one map minus a learned factor times another."""

    type: Literal["differential"] = "differential"
    num_heads: Count = Field(description="heads (H), each of two maps")
    head_dim: Count | None = Field(
        None, description="width of a query or key (D); dim / num_heads / 2 when left out"
    )
    causal: bool | None = Field(
        None, description="a position sees itself and those before it; left out: as the model type"
    )
    position: Annotated[NoPositionOptions | RotaryOptions, Field(discriminator="type")] = Field(
        NoPositionOptions(), description="what is done to queries and keys"
    )
    lambda_init: Fraction | None = Field(
        None, description="the factor's start; left out: the paper's 0.8 - 0.6 exp(-0.3 depth)"
    )

    def start(self, index: int) -> float:
        """The factor's start in the layer of this index."""
        start = 0.8 - 0.6 * math.exp(-0.3 * index)
        return start if self.lambda_init is None else self.lambda_init

    def placed(self, index: int) -> Self:
        return self.model_copy(update={"lambda_init": self.start(index)})

    def build(self, layer: LayerContext) -> Differential:
        """The module. Raises `ValueError` for a width that the heads do not divide."""
        if self.head_dim is None and layer.dim % (2 * self.num_heads):
            raise ValueError(
                f"num_heads: {self.num_heads} heads of two maps do not divide dim {layer.dim}; give"
                " head_dim"
            )
        return Differential(self, layer)


class Differential(AttentionPart):
    """(B, T, C) -> (B, T, C)   (map of (Q1, K1) - lambda map of (Q2, K2)) V, per head.

    Ye et al. 2024; a map is softmax(Q K^T / sqrt(D)).

    V has width 2 D. Each head is normalised (RMSNorm without weights, as in the authors' second
    version) and multiplied by 1 - lambda_init. lambda = exp(a . b) - exp(c . d) + lambda_init is
    shared by the heads.
    """

    def __init__(self, options: DifferentialOptions, layer: LayerContext) -> None:
        super().__init__()
        self.heads = options.num_heads
        self.width = options.head_dim or layer.dim // options.num_heads // 2
        inner = 2 * self.heads * self.width
        self.qkv = nn.Linear(layer.dim, 3 * inner, bias=False)
        self.out = nn.Linear(inner, layer.dim, bias=False)
        self.lambda_init = options.start(layer.layer_index)
        self.factors = nn.Parameter(torch.randn(4, self.width) * 0.1)
        self.rotary = options.position.turning(self.width, layer)
        self.spec = AttentionSpec(layer.causal if options.causal is None else options.causal)

    def weight_roles(self) -> dict[str, Role]:
        """Queries, keys and values are separate matrices."""
        return {"qkv.weight": fused(*[2 * self.heads * self.width] * 3, names=("q", "k", "v"))}

    def shares(self) -> Shares:
        """By heads, of two maps each; all read the factors."""
        heads = Run("heads", self.heads, 2 * self.width)
        return {
            "qkv.weight": by_outputs(heads, heads, heads),
            "factors": PARTIAL,
            "out.weight": by_inputs(heads),
        }

    @property
    def context_fault(self) -> str:
        return self.rows_fault()

    def narrow(self, team: Team) -> None:
        self.heads, self.team = self.heads // team.size, team

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for generation."""
        keys, values = (2 * self.heads, self.width), (self.heads, 2 * self.width)
        return KVCache.of(self.qkv.weight, batch, max_len, keys, values)

    def factor(self) -> Tensor:
        """lambda, a scalar."""
        a, b, c, d = self.factors.float() if self.factors.dtype != torch.float64 else self.factors
        y: Tensor = (a @ b).exp() - (c @ d).exp() + self.lambda_init
        return y

    def minus(self) -> Tensor:
        return self.factor()

    def value_sizes(self, v: Tensor) -> None:
        """Not defined: what a head adds is normalised after its maps are subtracted."""

    def forward(
        self, x: Tensor, sequence: SequenceInfo = SINGLE_DOCUMENT, cache: KVCache | None = None
    ) -> Tensor:
        """Mix the positions; with a cache, x holds the positions that follow those in it."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.team.enter(x)).chunk(3, -1)
        )
        # (B, 2H, T, D): first maps, then second
        q, k = (torch.cat(t.chunk(2, -1), 1) for t in (q, k))
        if self.rotary is not None:
            q, k = self.rotary(q, sequence), self.rotary(k, sequence)
        if cache is not None:
            k, v = cache.append(k.to(cache.keys.dtype), v.to(cache.values.dtype))
            q = q.to(k.dtype)
        share, segments = sequence.share, sequence.segment_ids
        if share is not None:
            k, v = share.whole(k, v)
        factor = self.factor()
        # (B, 2H, T, 2D)
        y = self.attend(q, k, torch.cat((v, v), 1), share=share, segments=segments)
        first, second = y.chunk(2, 1)
        y = first - factor.to(y.dtype) * second
        y = F.rms_norm(y, y.shape[-1:], eps=1e-5) * (1 - self.lambda_init)
        return self.joined(y)
