"""Parts: what the slots of a block are filled with. One file an idea; options and module side by side.

Shapes are written with one legend throughout:

    B batch   T sequence   S memory (positions looked at)   C channels   H heads   G key/value heads
    D head width   N state width   P value width   V vocabulary   E experts

The tables below are all there is: a part is one file and one line here. A mixer is built for a `Place` and called with
(x, stream, cache); a feed-forward network is built for a `Place` and called with (x, stream) (see stream.py). A part whose
weights are not one matrix each says which matrices they hold (matrices.py). Parts from files that the user names on the
command line (--plugin) join the tables when this package is imported.
"""

from __future__ import annotations

import functools
import importlib
import operator
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field

from bigmodel_cli.config import Options
from bigmodel_cli.parts.attention import CrossAttentionOptions
from bigmodel_cli.plugins import extend


def _table(*lines: str) -> dict[str, type[Options]]:
    """The options classes of lines 'file:class', each under the name of its `type`."""
    table: dict[str, type[Options]] = {}
    for line in lines:
        file, _, name = line.partition(":")
        options: type[Options] = getattr(importlib.import_module(f"{__name__}.{file}"), name)
        table[options.model_fields["type"].default] = options
    return table


MIXERS = _table(
    "attention:AttentionOptions",
    "latent:LatentAttentionOptions",
    "differential:DifferentialOptions",
    "mamba2:Mamba2Options",
    "gated_deltanet:GatedDeltaNetOptions",
    "convolution:ConvolutionOptions",
    "retention:RetentionOptions",
)
FFNS = _table(
    "ffn:GeluFFNOptions",
    "ffn:ReluFFNOptions",
    "ffn:SquaredReluFFNOptions",
    "ffn:SwiGLUOptions",
    "ffn:GeGLUOptions",
    "moe:MoEOptions",
)
NORMS = _table("norm:LayerNormOptions", "norm:RMSNormOptions")
POSITIONS = _table("position:NoPositionOptions", "position:LearnedOptions", "position:SinusoidalOptions")

extend({"mixer": MIXERS, "ffn": FFNS, "norm": NORMS, "position": POSITIONS})

if TYPE_CHECKING:
    Mixer: TypeAlias = Any
    FFN: TypeAlias = Any
    Norm: TypeAlias = Any
    Position: TypeAlias = Any
else:

    def _one_of(table):
        return Annotated[functools.reduce(operator.or_, table.values()), Field(discriminator="type")]

    Mixer, FFN, Norm, Position = (_one_of(table) for table in (MIXERS, FFNS, NORMS, POSITIONS))

__all__ = ["FFN", "FFNS", "MIXERS", "NORMS", "POSITIONS", "CrossAttentionOptions", "Mixer", "Norm", "Position"]
