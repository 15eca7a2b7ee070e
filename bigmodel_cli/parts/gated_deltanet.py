"""Gated DeltaNet (Yang et al. 2025): a linear recurrence that overwrites the value of a key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bigmodel_cli.config import Count, Positive
from bigmodel_cli.device import full_precision
from bigmodel_cli.lazy import F, Tensor, nn, torch
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import States
from bigmodel_cli.parts.mixing import RecurrentCall
from bigmodel_cli.parts.norm import HeadGatedRMSNorm
from bigmodel_cli.parts.recurrence import ShortConvolution, delta_scan
from bigmodel_cli.parts.recurrent import (
    Chunk,
    Kernel,
    RecurrentCache,
    RecurrentMixer,
    RecurrentOptions,
    decay_parameters,
)
from bigmodel_cli.roles import Role, fused
from bigmodel_cli.shares import PARTIAL, Run, Shares, Team, by_inputs, by_outputs


class GatedDeltaNetOptions(RecurrentOptions):
    """Gated DeltaNet (Yang et al. 2025): linear attention with the delta rule and a decay."""

    type: Literal["gated_deltanet"] = "gated_deltanet"
    num_heads: Count = Field(description="heads of values (H)")
    key_heads: Count | None = Field(
        None, description="heads of queries and keys; as many as num_heads when left out"
    )
    key_dim: Count | None = Field(
        None, description="width of a query or key (N); dim / num_heads when left out"
    )
    value_dim: Count | None = Field(
        None, description="width of a value (P); as key_dim when left out"
    )
    kernel: Kernel = Field(4, description="width of the short convolution")
    norm_eps: Positive = Field(1e-6, description="added to the mean square of each head's output")
    chunk: Chunk = 64

    def settled(self, dim: int) -> dict[str, Any]:
        width = self.key_dim or dim // self.num_heads
        heads = self.key_heads or self.num_heads
        return {"key_heads": heads, "key_dim": width, "value_dim": self.value_dim or width}

    def build_causal(self, layer: LayerContext) -> GatedDeltaNet:
        """The module. Raises `ValueError` where the heads do not divide."""
        if self.num_heads % (self.key_heads or self.num_heads):
            raise ValueError(
                f"num_heads: {self.num_heads} is not a multiple of key_heads {self.key_heads}"
            )
        if self.key_dim is None and layer.dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} heads do not divide dim {layer.dim}; give key_dim"
            )
        return GatedDeltaNet(self, layer.dim)


class GatedDeltaNet(RecurrentMixer):
    """(B, T, C) -> (B, T, C)   y_t = q_t S_t, with the state S below.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T

    Yang et al. 2025. Queries and keys have unit length; a_t = exp(-A softplus(x W + dt)); the
    output is normalised and gated per head. Step sizes and A start as Mamba-2's (in the authors'
    code A starts between 0 and 16).
    """

    def __init__(self, options: GatedDeltaNetOptions, dim: int) -> None:
        super().__init__()
        self.heads, self.key_heads = options.num_heads, options.key_heads or options.num_heads
        self.key_dim = options.key_dim or dim // options.num_heads
        self.value_dim = options.value_dim or self.key_dim
        self.chunk = options.chunk
        self.sizes = [
            self.key_heads * self.key_dim,
            self.key_heads * self.key_dim,
            self.heads * self.value_dim,
        ]
        self.qkv = nn.Linear(dim, sum(self.sizes), bias=False)
        self.gate = nn.Linear(dim, self.heads * self.value_dim, bias=False)
        self.rates = nn.Linear(dim, 2 * self.heads, bias=False)  # beta and decay
        self.conv = ShortConvolution(sum(self.sizes), options.kernel, bias=False)
        self.dt_bias, self.log_a = decay_parameters(self.heads)
        self.norm = HeadGatedRMSNorm(self.value_dim, options.norm_eps)
        self.out = nn.Linear(self.heads * self.value_dim, dim, bias=False)

    def weight_roles(self) -> dict[str, Role]:
        """Queries, keys, values, beta and decay are separate matrices."""
        return {
            "qkv.weight": fused(*self.sizes, names=("q", "k", "v")),
            "rates.weight": fused(self.heads, self.heads, names=("beta", "decay")),
        }

    def shares(self) -> Shares:
        """By heads of values, with the heads of keys that theirs read; all read the norm."""
        one, values = Run("heads", self.heads), Run("heads", self.heads, self.value_dim)
        keys = Run("heads of keys", self.key_heads, self.key_dim, repeated=True)
        return {
            "qkv.weight": by_outputs(keys, keys, values),
            "gate.weight": by_outputs(values),
            "rates.weight": by_outputs(one, one),
            "conv.weight": by_outputs(keys, keys, values),
            "dt_bias": by_outputs(one),
            "log_a": by_outputs(one),
            "norm.weight": PARTIAL,
            "out.weight": by_inputs(values),
        }

    def narrow(self, team: Team) -> None:
        keys = Run("heads of keys", self.key_heads, repeated=True).share(team.rank, team.size)
        self.heads, self.key_heads, self.team = self.heads // team.size, len(keys), team
        rows = self.key_heads * self.key_dim
        self.sizes = [rows, rows, self.heads * self.value_dim]

    def states(self) -> States:
        width = self.conv.kernel - 1, sum(self.sizes)
        return {"conv": width, "recurrent": (self.heads, self.key_dim, self.value_dim)}

    def mix(self, x: Tensor, sequence: SequenceInfo, cache: RecurrentCache) -> Tensor:
        x = self.team.enter(x)
        qkv, cache.past = self.conv(self.qkv(x), sequence, cache.past)
        kind = torch.promote_types(x.dtype, torch.float32)
        q, k, v = F.silu(qkv).to(kind).split(self.sizes, -1)
        q, k = (self.unit(t) for t in (q, k))  # (B, H, T, N)
        v = v.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, P)
        beta, rate = self.rates(x).to(kind).transpose(1, 2).chunk(2, 1)  # (B, H, T) each
        with full_precision(x.device):
            decay = -self.log_a.to(kind).exp()[:, None] * F.softplus(rate + self.dt_bias[:, None])
            q, beta, before = q * self.key_dim**-0.5, beta.sigmoid(), cache.state
            y, cache.state = delta_scan(q, k, v, decay, beta, before, sequence, self.chunk)
        y = self.watched(
            lambda: RecurrentCall(y, sequence, before is not None, q, k, v, decay, beta), y
        )
        gate = self.gate(x).unflatten(-1, (self.heads, -1))
        return self.team.leave(self.out, self.norm(y.transpose(1, 2), gate).flatten(2).to(x.dtype))

    def unit(self, x: Tensor) -> Tensor:
        """(B, T, heads * N) -> (B, H, T, N), each of unit length."""
        x = x.unflatten(-1, (self.key_heads, -1)).transpose(1, 2)
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
        return x.repeat_interleave(self.heads // self.key_heads, dim=1)
