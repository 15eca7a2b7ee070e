"""Retention (Sun et al. 2023): linear attention with a fixed decay per head."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Count
from bigmodel_cli.device import full_precision
from bigmodel_cli.lazy import F, Tensor, nn, torch
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import States
from bigmodel_cli.parts.mixing import RecurrentCall
from bigmodel_cli.parts.recurrence import scan
from bigmodel_cli.parts.recurrent import Chunk, RecurrentCache, RecurrentMixer, RecurrentOptions
from bigmodel_cli.parts.rotary import Rotary
from bigmodel_cli.roles import Role, fused
from bigmodel_cli.shares import Run, Shares, Team, by_inputs, by_outputs

EPS = 1e-6
"""Added to a head's mean square (torchscale's default)."""


class RetentionOptions(RecurrentOptions):
    """Retention (Sun et al. 2023, RetNet): linear attention with a fixed decay per head."""

    type: Literal["retention"] = "retention"
    num_heads: Count = Field(description="heads (H), of dim / num_heads channels each")
    value_dim: Count | None = Field(
        None, description="width of a value (P); as a query's when left out"
    )
    chunk: Chunk = 64

    def build_causal(self, layer: LayerContext) -> Retention:
        """The module. Raises `ValueError` where the heads do not divide the width."""
        if layer.dim % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} heads do not divide dim {layer.dim}")
        if layer.dim // self.num_heads % 2:
            raise ValueError(
                f"num_heads: heads of {layer.dim // self.num_heads} channels, which are turned in"
                " pairs"
            )
        return Retention(self, layer)


class Retention(RecurrentMixer):
    """(B, T, C) -> (B, T, C)   (Q K^T * D) V with D_ij = gamma_h^(i - j) for j <= i.

    Sun et al. 2023, equation 5; gamma_h = 1 - 2^(-5 - h). As in the authors' code (torchscale),
    pair i of a query's and a key's channels is rotated by 10000^(-i / (N / 2 - 1)) per position,
    and each head's result is normalised to a root mean square of 1 and gated. The code's divisor of
    the scores has no effect before the norm and is left out; so is a learned scale of the norm,
    which `out` contains.
    """

    needs_max_len = True  # by the table of angles

    def __init__(self, options: RetentionOptions, layer: LayerContext) -> None:
        super().__init__()
        self.heads, self.chunk = options.num_heads, options.chunk
        width = layer.dim // self.heads
        values = self.heads * (options.value_dim or width)
        self.sizes = [layer.dim, layer.dim, values]
        self.qkv = nn.Linear(layer.dim, sum(self.sizes), bias=False)
        self.gate = nn.Linear(layer.dim, values, bias=False)
        rate = 10000.0 ** -torch.linspace(0, 1, width // 2, dtype=torch.float64)
        self.rotary = layer.shared(("retention", width), lambda: Rotary(rate, layer.max_len))
        logs = [math.log1p(-(2.0 ** (-5 - h))) for h in range(self.heads)]
        self.register_buffer("log_gamma", torch.tensor(logs)[:, None], persistent=False)  # (H, 1)
        self.out = nn.Linear(values, layer.dim, bias=False)

    def weight_roles(self) -> dict[str, Role]:
        """Queries, keys and values are separate matrices."""
        return {"qkv.weight": fused(*self.sizes, names=("q", "k", "v"))}

    def shares(self) -> Shares:
        """By heads."""
        queries, _, values = (Run("heads", self.heads, n // self.heads) for n in self.sizes)
        return {
            "qkv.weight": by_outputs(queries, queries, values),
            "gate.weight": by_outputs(values),
            "log_gamma": by_outputs(Run("heads", self.heads)),
            "out.weight": by_inputs(values),
        }

    def narrow(self, team: Team) -> None:
        self.sizes = [size // team.size for size in self.sizes]
        self.heads, self.team = self.heads // team.size, team

    def states(self) -> States:
        queries, _, values = (size // self.heads for size in self.sizes)
        return {"recurrent": (self.heads, queries, values)}

    def mix(self, x: Tensor, sequence: SequenceInfo, cache: RecurrentCache) -> Tensor:
        x = self.team.enter(x)
        kind = torch.promote_types(x.dtype, torch.float32)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in self.qkv(x).to(kind).split(self.sizes, -1)
        )
        decay = self.log_gamma.to(kind).expand(x.shape[0], self.heads, x.shape[1])  # type: ignore[operator]
        with full_precision(x.device):
            q, k = self.rotary(q, sequence) * q.shape[-1] ** -0.5, self.rotary(k, sequence)
            before = cache.state
            y, cache.state = scan(q, k, v, decay, before, sequence, self.chunk)
        y = self.watched(lambda: RecurrentCall(y, sequence, before is not None, q, k, v, decay), y)
        y = F.rms_norm(y.transpose(1, 2), y.shape[-1:], eps=EPS).flatten(2)  # (B, T, H * P)
        return self.team.leave(self.out, (y * F.silu(self.gate(x).to(kind))).to(x.dtype))
