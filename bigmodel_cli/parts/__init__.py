"""Parts: what the slots of a block are filled with.

One file per idea, options and module side by side.

Shapes are written with one legend throughout:

B batch   T sequence   S memory (positions attended to)   C channels   H heads   G key/value heads
    D head width   N state width   P value width   V vocabulary   E experts

The tables below list all parts: a part is one file and one name here. A mixer is built for a
`LayerContext` and called with (x, sequence, cache); a feed-forward network is built for a
`LayerContext` and called with (x, sequence) (see context.py). A part some of whose weights hold
several matrices says which (matrices.py).
"""

from __future__ import annotations

from typing import Annotated

from bigmodel_cli.config import Table
from bigmodel_cli.parts.attention import AttentionOptions, CrossAttentionOptions
from bigmodel_cli.parts.contract import (
    AnyFFNOptions,
    AnyNormOptions,
    AnyPositionOptions,
)
from bigmodel_cli.parts.convolution import ConvolutionOptions
from bigmodel_cli.parts.differential import DifferentialOptions
from bigmodel_cli.parts.ffn import (
    GeGLUOptions,
    GeluFFNOptions,
    ReluFFNOptions,
    SiluFFNOptions,
    SquaredReluFFNOptions,
    SwiGLUOptions,
)
from bigmodel_cli.parts.gated_deltanet import GatedDeltaNetOptions
from bigmodel_cli.parts.latent import LatentAttentionOptions
from bigmodel_cli.parts.mamba2 import Mamba2Options
from bigmodel_cli.parts.moe import MoEOptions
from bigmodel_cli.parts.norm import LayerNormOptions, NoNormOptions, RMSNormOptions
from bigmodel_cli.parts.parallel import MIXERS, Mixer, ParallelOptions
from bigmodel_cli.parts.position import (
    HEAD_POSITIONS,
    LearnedOptions,
    NoPositionOptions,
    SinusoidalOptions,
)
from bigmodel_cli.parts.retention import RetentionOptions

MIXERS.add(
    AttentionOptions,
    LatentAttentionOptions,
    DifferentialOptions,
    Mamba2Options,
    GatedDeltaNetOptions,
    ConvolutionOptions,
    RetentionOptions,
    ParallelOptions,
)
FFNS = Table(
    "ffn",
    AnyFFNOptions,
    GeluFFNOptions,
    ReluFFNOptions,
    SiluFFNOptions,
    SquaredReluFFNOptions,
    SwiGLUOptions,
    GeGLUOptions,
    MoEOptions,
)
NORMS = Table("norm", AnyNormOptions, LayerNormOptions, RMSNormOptions, NoNormOptions)
POSITIONS = Table(
    "position", AnyPositionOptions, NoPositionOptions, LearnedOptions, SinusoidalOptions
)

FFN = Annotated[AnyFFNOptions, FFNS]
Norm = Annotated[AnyNormOptions, NORMS]
Position = Annotated[AnyPositionOptions, POSITIONS]

__all__ = [
    "FFN",
    "FFNS",
    "HEAD_POSITIONS",
    "MIXERS",
    "NORMS",
    "POSITIONS",
    "CrossAttentionOptions",
    "Mixer",
    "Norm",
    "Position",
]
