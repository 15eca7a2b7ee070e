"""Mamba-2: a state space model with a scalar decay per head (Dao and Gu 2024)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Count, Positive
from bigmodel_cli.device import full_precision
from bigmodel_cli.lazy import F, Tensor, nn, torch
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import States
from bigmodel_cli.parts.mixing import RecurrentCall
from bigmodel_cli.parts.norm import GatedRMSNorm
from bigmodel_cli.parts.recurrence import ShortConvolution, scan
from bigmodel_cli.parts.recurrent import (
    Chunk,
    Kernel,
    RecurrentCache,
    RecurrentMixer,
    RecurrentOptions,
    decay_parameters,
)
from bigmodel_cli.roles import Role, fused
from bigmodel_cli.shares import Run, Shares, Team, by_inputs, by_outputs


class Mamba2Options(RecurrentOptions):
    """Mamba-2 (Dao and Gu 2024): a state space layer with input-dependent decay."""

    type: Literal["mamba2"] = "mamba2"
    state: Count = Field(64, description="size of the state per channel (N)")
    head_dim: Count = Field(64, description="channels per head (P)")
    expand: Positive = Field(2.0, description="inner width as a multiple of dim")
    groups: Count = Field(1, description="groups of heads that share B and C")
    kernel: Kernel = Field(4, description="width of the short convolution")
    chunk: Chunk = 64
    eps: Positive = Field(1e-5, description="added to the mean square of the gated norm")

    def build_causal(self, layer: LayerContext) -> Mamba2:
        """The module. Raises `ValueError` where heads or groups do not divide the inner width."""
        inner = round(self.expand * layer.dim)
        if inner % self.head_dim:
            raise ValueError(f"head_dim: {self.head_dim} does not divide the inner width {inner}")
        if (inner // self.head_dim) % self.groups:
            raise ValueError(
                f"groups: {self.groups} does not divide {inner // self.head_dim} heads"
            )
        return Mamba2(self, layer.dim, inner)


class Mamba2(RecurrentMixer):
    """(B, T, C) -> (B, T, C)   h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t + D x_t.

    Dao and Gu 2024.
    """

    def __init__(self, options: Mamba2Options, dim: int, inner: int) -> None:
        super().__init__()
        self.options, self.inner, self.groups = options, inner, options.groups
        self.heads = heads = inner // options.head_dim
        self.mixed = inner + 2 * options.groups * options.state
        self.input = nn.Linear(dim, inner + self.mixed + heads, bias=False)
        self.conv = ShortConvolution(self.mixed, options.kernel, bias=True)
        self.dt_bias, self.log_a = decay_parameters(heads)
        self.d = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(inner, options.groups, options.eps)
        self.out = nn.Linear(inner, dim, bias=False)

    def weight_roles(self) -> dict[str, Role]:
        """The gate, x, B, C and the step sizes are separate matrices."""
        shared = self.groups * self.options.state
        rows = self.inner, self.inner, shared, shared, self.heads
        return {"input.weight": fused(*rows, names=("gate", "x", "B", "C", "dt"))}

    def shares(self) -> Shares:
        """By heads, with the groups that theirs read."""
        one, heads = Run("heads", self.heads), Run("heads", self.heads, self.options.head_dim)
        groups = Run("groups", self.groups, self.options.state, repeated=True)
        return {
            "input.weight": by_outputs(heads, heads, groups, groups, one),
            "conv.weight": by_outputs(heads, groups, groups),
            "conv.bias": by_outputs(heads, groups, groups),
            "dt_bias": by_outputs(one),
            "log_a": by_outputs(one),
            "d": by_outputs(one),
            "norm.weight": by_outputs(heads),
            "out.weight": by_inputs(heads),
        }

    def narrow(self, team: Team) -> None:
        groups = Run("groups", self.groups, repeated=True)
        self.groups = len(groups.share(team.rank, team.size))
        self.heads, self.inner = self.heads // team.size, self.inner // team.size
        self.mixed = self.inner + 2 * self.groups * self.options.state
        self.norm.groups, self.team = self.groups, team
        self.norm.team = team.neighbours(groups.copies(team.size))

    def states(self) -> States:
        width = self.options.kernel - 1, self.mixed
        return {"conv": width, "recurrent": (self.heads, self.options.state, self.options.head_dim)}

    def mix(self, x: Tensor, sequence: SequenceInfo, cache: RecurrentCache) -> Tensor:
        options = self.options
        x = self.team.enter(x)
        gate, mixed, dt = self.input(x).split([self.inner, self.mixed, self.heads], -1)
        mixed, cache.past = self.conv(mixed, sequence, cache.past)
        mixed = F.silu(mixed)
        shared = self.groups * options.state
        v, k, q = mixed.split([self.inner, shared, shared], -1)
        kind = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(dt.to(kind) + self.dt_bias).transpose(1, 2)  # (B, H, T)
        v = v.unflatten(-1, (self.heads, -1)).transpose(1, 2).to(kind)  # (B, H, T, P)
        q, k = (self.per_head(t).to(kind) for t in (q, k))  # (B, H, T, N)
        with full_precision(x.device):
            decay = -self.log_a.to(kind).exp()[:, None] * dt
            before, skip = cache.state, self.d.to(kind)
            y, cache.state = scan(q, k, v * dt[..., None], decay, before, sequence, options.chunk)
            y = y + skip[:, None, None] * v
        y = self.watched(
            lambda: RecurrentCall(
                y, sequence, before is not None, q, k * dt[..., None], v, decay, skip=skip
            ),
            y,
        )
        y = self.norm(y.transpose(1, 2).flatten(2), gate).to(x.dtype)
        return self.team.leave(self.out, y)

    def per_head(self, x: Tensor) -> Tensor:
        """(B, T, groups * N) -> (B, H, T, N)"""
        x = x.unflatten(-1, (self.groups, -1)).transpose(1, 2)
        return x.repeat_interleave(self.heads // self.groups, dim=1)
