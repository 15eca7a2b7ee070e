"""Mamba-2: a state space model with a scalar decay per head (Dao and Gu 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Positive
from bigmodel_cli.device import full_precision
from bigmodel_cli.lazy import F, Tensor, nn, torch
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyMixerOptions
from bigmodel_cli.parts.matrices import OwnMatrices
from bigmodel_cli.parts.norm import GatedRMSNorm
from bigmodel_cli.parts.recurrence import ShortConvolution, scan
from bigmodel_cli.roles import Role, fused


class Mamba2Options(AnyMixerOptions):
    """Mamba-2 (Dao and Gu 2024): a state space layer with input-dependent decay."""

    type: Literal["mamba2"] = "mamba2"
    state: Count = Field(64, description="size of the state per channel (N)")
    head_dim: Count = Field(64, description="channels per head (P)")
    expand: Positive = Field(2.0, description="inner width as a multiple of dim")
    groups: Count = Field(1, description="groups of heads that share B and C")
    kernel: Count = Field(4, description="width of the short convolution")
    chunk: Count = Field(
        64, description="positions computed together; changes speed and memory, not the result"
    )

    @model_validator(mode="after")
    def _positive_kernel(self) -> Mamba2Options:
        if self.kernel < 2:
            raise ValueError("kernel: the short convolution spans at least 2 positions")
        return self

    def build(self, layer: LayerContext) -> Mamba2:
        """The module. Raises `ValueError` where heads or groups do not divide the inner width."""
        inner = round(self.expand * layer.dim)
        if not layer.causal:
            raise ValueError(
                "type: mamba2 goes from left to right; an encoder's mixers see both sides"
            )
        if inner % self.head_dim:
            raise ValueError(f"head_dim: {self.head_dim} does not divide the inner width {inner}")
        if (inner // self.head_dim) % self.groups:
            raise ValueError(
                f"groups: {self.groups} does not divide {inner // self.head_dim} heads"
            )
        return Mamba2(self, layer.dim, inner)


@dataclass
class RecurrentCache:
    """The last inputs of the short convolution (B, kernel - 1, C) and the state (B, H, N, P)."""

    past: Tensor | None = None
    state: Tensor | None = None


class Mamba2(OwnMatrices):
    """(B, T, C) -> (B, T, C)   h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t + D x_t.

    Dao and Gu 2024. Step sizes start between 0.001 and 0.1 and A between 1 and 16, as in the
    paper's code.
    """

    needs_max_len = False

    def __init__(self, options: Mamba2Options, dim: int, inner: int) -> None:
        super().__init__()
        self.options, self.inner = options, inner
        self.heads = heads = inner // options.head_dim
        self.mixed = inner + 2 * options.groups * options.state
        self.input = nn.Linear(dim, inner + self.mixed + heads, bias=False)
        self.conv = ShortConvolution(self.mixed, options.kernel, bias=True)
        dt = torch.exp(
            torch.rand(heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)
        ).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.log_a = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.d = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(inner, options.groups)
        self.out = nn.Linear(inner, dim, bias=False)

    def weight_roles(self) -> dict[str, Role]:
        """The gate, x, B, C and the step sizes are separate matrices."""
        shared = self.options.groups * self.options.state
        return {"input.weight": fused(self.inner, self.inner, shared, shared, self.heads)}

    def new_cache(self, batch: int, max_len: int) -> RecurrentCache:
        return RecurrentCache()

    def forward(
        self,
        x: Tensor,
        sequence: SequenceInfo = SINGLE_DOCUMENT,
        cache: RecurrentCache | None = None,
    ) -> Tensor:
        """Mix the positions; with a cache, x continues its positions."""
        options = self.options
        gate, mixed, dt = self.input(x).split([self.inner, self.mixed, self.heads], -1)
        mixed, past = self.conv(mixed, sequence, cache.past if cache is not None else None)
        mixed = F.silu(mixed)
        shared = options.groups * options.state
        v, k, q = mixed.split([self.inner, shared, shared], -1)
        kind = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(dt.to(kind) + self.dt_bias).transpose(1, 2)  # (B, H, T)
        v = v.unflatten(-1, (self.heads, -1)).transpose(1, 2).to(kind)  # (B, H, T, P)
        q, k = (self.per_head(t).to(kind) for t in (q, k))  # (B, H, T, N)
        with full_precision(x.device):
            state = cache.state if cache is not None else None
            decay = -self.log_a.to(kind).exp()[:, None] * dt
            y, state = scan(q, k, v * dt[..., None], decay, state, sequence, options.chunk)
            y = y + self.d.to(kind)[:, None, None] * v
        if cache is not None:
            cache.past, cache.state = past, state
        out: Tensor = self.out(self.norm(y.transpose(1, 2).flatten(2), gate).to(x.dtype))
        return out

    def per_head(self, x: Tensor) -> Tensor:
        """(B, T, groups * N) -> (B, H, T, N)"""
        x = x.unflatten(-1, (self.options.groups, -1)).transpose(1, 2)
        return x.repeat_interleave(self.heads // self.options.groups, dim=1)
