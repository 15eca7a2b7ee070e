"""Options of blocks, against formulas written anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
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


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "after"])
def test_norms_of_single_slots(placement: str) -> None:
    part = block(
        mixer={"type": "attention", "num_heads": 2}, ffn="gelu", norm="rmsnorm",
        mixer_norm="none", ffn_norm={"type": "layernorm", "eps": 0.1}, placement=placement,
    )  # fmt: skip
    x = torch.randn(2, 3, 10)
    before, after = placement in ("pre", "sandwich"), placement in ("after", "sandwich")

    def layer(x: torch.Tensor, norm: Any) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        root = (centred.square().mean(-1, keepdim=True) + 0.1).sqrt()
        return centred / root * norm.weight + norm.bias

    y = x + part.mixer(x)
    z = part.ffn(layer(y, part.ffn_norm) if before else y)
    if after:
        z = layer(z, part.ffn_norm_after if before else part.ffn_norm)
    want = layer(y + z, part.ffn_norm) if placement == "post" else y + z
    torch.testing.assert_close(part(x), want)
    assert not [name for name, _ in part.named_parameters() if name.startswith("mixer_norm")]


def test_a_norm_of_an_empty_slot_is_refused() -> None:
    with pytest.raises(ValidationError, match="cross_norm: there is no cross to normalise for"):
        BlockOptions.model_validate({"ffn": "gelu", "cross_norm": "rmsnorm"})
