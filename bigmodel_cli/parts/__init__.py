"""Parts: what the slots of a block are filled with. One file an idea; options and module side by side.

Shapes are written with one legend throughout:

    B batch   T sequence   S memory (positions looked at)   C channels   H heads   G key/value heads
    D head width   V vocabulary   E experts

The tables below are all there is: a part is one file and one line here.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bigmodel_cli.config import Options
from bigmodel_cli.parts.attention import AttentionOptions
from bigmodel_cli.parts.ffn import GatedFFNOptions, GeluFFNOptions, ReluFFNOptions
from bigmodel_cli.parts.norm import LayerNormOptions, RMSNormOptions
from bigmodel_cli.parts.position import LearnedOptions, NoPositionOptions, SinusoidalOptions

MIXERS: dict[str, type[Options]] = {"attention": AttentionOptions}
FFNS: dict[str, type[Options]] = {"gelu": GeluFFNOptions, "relu": ReluFFNOptions, "swiglu": GatedFFNOptions}
NORMS: dict[str, type[Options]] = {"layernorm": LayerNormOptions, "rmsnorm": RMSNormOptions}
POSITIONS: dict[str, type[Options]] = {
    "none": NoPositionOptions,
    "learned": LearnedOptions,
    "sinusoidal": SinusoidalOptions,
}

Mixer = AttentionOptions  # a union, once there is a second mixer
FFN = Annotated[GeluFFNOptions | ReluFFNOptions | GatedFFNOptions, Field(discriminator="type")]
Norm = Annotated[LayerNormOptions | RMSNormOptions, Field(discriminator="type")]
Position = Annotated[NoPositionOptions | LearnedOptions | SinusoidalOptions, Field(discriminator="type")]

__all__ = ["FFN", "FFNS", "MIXERS", "NORMS", "POSITIONS", "Mixer", "Norm", "Position"]
