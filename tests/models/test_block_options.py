"""Options of blocks, against formulas written anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bigmodel_cli.models.block import Block, BlockOptions
from bigmodel_cli.parts.context import LayerContext


def block(**values: Any) -> Block:
    """A block of width 10 whose every weight is drawn anew."""
    torch.manual_seed(2)
    made = Block(BlockOptions.model_validate(values), LayerContext(10, 8)).eval()
    for p in made.parameters():
        nn.init.normal_(p, std=0.5)
    return made


def rms(x: torch.Tensor, norm: Any) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def test_norms_after_the_parts() -> None:
    part = block(
        mixer={"type": "attention", "num_heads": 5}, ffn="gelu", placement="after",
        norm={"type": "rmsnorm", "eps": 1e-2}, residual_scale=0.7,
    )  # fmt: skip
    x = torch.randn(3, 7, 10)
    y = x + 0.7 * rms(part.mixer(x), part.mixer_norm)
    torch.testing.assert_close(part(x), y + 0.7 * rms(part.ffn(y), part.ffn_norm))
