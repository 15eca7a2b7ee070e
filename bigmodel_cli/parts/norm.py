"""Normalisation of the residual stream."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Positive
from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.parts.contract import AnyNormOptions
from bigmodel_cli.shares import ALONE, Team


class NoNormOptions(AnyNormOptions):
    """No normalisation."""

    type: Literal["none"] = "none"

    def build(self, dim: int) -> Module:
        return nn.Identity()


class LayerNormOptions(AnyNormOptions):
    """LayerNorm (Ba et al. 2016): zero mean, unit variance, then a learned scale and shift."""

    type: Literal["layernorm"] = "layernorm"
    bias: bool = Field(True, description="learn a shift")
    eps: Positive = Field(1e-5, description="added to the variance")

    def build(self, dim: int) -> Module:
        return nn.LayerNorm(dim, eps=self.eps, bias=self.bias)


class RMSNormOptions(AnyNormOptions):
    """RMSNorm (Zhang and Sennrich 2019): unit root mean square, then a learned scale."""

    type: Literal["rmsnorm"] = "rmsnorm"
    eps: Positive = Field(1e-6, description="added to the mean square")
    offset: bool = Field(
        False, description="the scale is 1 + weight, and the weight starts at 0, as in Gemma"
    )

    def build(self, dim: int) -> RMSNorm:
        return RMSNorm(dim, self.eps, self.offset)


class RMSNorm(Module):
    """(..., C) -> (..., C)   x / sqrt(mean(x^2) + eps) * weight, in fp32.

    With `offset` it is multiplied by 1 + weight, and 1 is added in fp32: a weight in bf16 near 0
    has digits that 1 + weight in bf16 has not. A `team` that shares the channels shares the mean.
    """

    team: Team = ALONE
    context_fault = ""

    def __init__(self, dim: int, eps: float = 1e-6, offset: bool = False) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.zeros(dim) if offset else torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        weight: Tensor = self.weight
        if self.offset:
            weight = 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))
        if self.team.size > 1:
            return (together(x, 1, self.eps, self.team) * weight).to(x.dtype)
        return F.rms_norm(x.to(weight.dtype), (x.shape[-1],), weight, self.eps).to(x.dtype)


def together(x: Tensor, groups: int, eps: float, team: Team) -> Tensor:
    """(..., C) -> (..., C)   x / sqrt(mean(x^2) + eps) in groups of channels, in fp32 at least.

    The team has the other channels of the same groups, each as often as any other.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (groups, -1))
    squares = team.pooled(x.square().sum(-1, keepdim=True))
    mean = squares / (x.shape[-1] * team.size)
    return (x * torch.rsqrt(mean + eps)).flatten(-2)


class GatedRMSNorm(Module):
    """y, gate (..., C) -> (..., C)   RMSNorm of y * silu(gate) in groups of channels (Mamba-2).

    A `team` may share the channels of one group.
    """

    team: Team = ALONE

    def __init__(self, dim: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Gate, then normalise each group."""
        gated = y * F.silu(gate.to(y.dtype))
        if self.team.size > 1:
            return together(gated, self.groups, self.eps, self.team) * self.weight
        gated = gated.unflatten(-1, (self.groups, -1))
        return F.rms_norm(gated, gated.shape[-1:], eps=self.eps).flatten(-2) * self.weight


class HeadGatedRMSNorm(Module):
    """y, gate (..., P) -> (..., P)   RMSNorm of each head's y, times silu(gate)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:
        """Normalise, then gate."""
        weight = self.weight.to(y.dtype)
        return F.rms_norm(y, y.shape[-1:], weight, self.eps) * F.silu(gate.to(y.dtype))
