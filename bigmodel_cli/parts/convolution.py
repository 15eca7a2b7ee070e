"""Gated short convolution: the mixer of hybrid models between a few attention layers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.lazy import Tensor, nn
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import States
from bigmodel_cli.parts.mixing import BandCall
from bigmodel_cli.parts.recurrence import ShortConvolution
from bigmodel_cli.parts.recurrent import Kernel, RecurrentCache, RecurrentMixer, RecurrentOptions
from bigmodel_cli.roles import Role, fused
from bigmodel_cli.shares import WHOLE, Run, Shares, Team, by_inputs, by_outputs, own_of


class ConvolutionOptions(RecurrentOptions):
    """A depthwise causal convolution gated on both sides (LFM2 2025, after Poli et al. 2023)."""

    type: Literal["convolution"] = "convolution"
    kernel: Kernel = Field(3, description="positions seen, the own one included")
    bias: bool = Field(False, description="learn biases")

    def build_causal(self, layer: LayerContext) -> Convolution:
        return Convolution(self, layer.dim)


class Convolution(RecurrentMixer):
    """(B, T, C) -> (B, T, C)   out(c * conv(b * x)), with b, c, x = input(x) (LFM2 2025)."""

    def __init__(self, options: ConvolutionOptions, dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, 3 * dim, bias=options.bias)
        self.conv = ShortConvolution(dim, options.kernel, options.bias)
        self.out = nn.Linear(dim, dim, bias=options.bias)

    def weight_roles(self) -> dict[str, Role]:
        """The two gates and the value are separate matrices."""
        return {"input.weight": fused(*[self.out.in_features] * 3, names=("b", "c", "x"))}

    def shares(self) -> Shares:
        """By channels."""
        units = Run("channels", self.out.in_features)
        every = {f"input.{w}": by_outputs(units, units, units) for w in ("weight", "bias")}
        every |= {f"conv.{w}": by_outputs(units) for w in ("weight", "bias")}
        return own_of(self, {**every, "out.weight": by_inputs(units), "out.bias": WHOLE})

    def narrow(self, team: Team) -> None:
        self.team = team

    def states(self) -> States:
        return {"conv": (self.conv.kernel - 1, self.out.in_features)}

    def mix(self, x: Tensor, sequence: SequenceInfo, cache: RecurrentCache) -> Tensor:
        before, after, value = self.input(self.team.enter(x)).chunk(3, -1)
        past = cache.past
        y, cache.past = self.conv(before * value, sequence, past)
        if self.mixing_watcher is not None:
            y = self.shown(before, value, y, sequence, past)
        return self.team.leave(self.out, after * y)

    def shown(
        self, gate: Tensor, value: Tensor, y: Tensor, sequence: SequenceInfo, past: Tensor | None
    ) -> Tensor:
        """(B, T, C)   y after the watcher has seen it: all channels as one head, without bias."""
        taps, bias = self.conv.weight, self.conv.bias
        output = (y if bias is None else y - bias)[:, None]
        call = BandCall(output, sequence, past is not None, taps, gate, value)
        seen = self.watched(lambda: call, output)[:, 0]
        return seen if bias is None else seen + bias
