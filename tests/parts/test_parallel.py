"""Several mixers in one block."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bigmodel_cli.attend.layers import Wanted, found_in
from bigmodel_cli.attend.look import Side
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import OptionError
from bigmodel_cli.models.block import Block, BlockOptions
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.parts.context import LayerContext
from bigmodel_cli.parts.parallel import ParallelOptions

ATTENTION = {"type": "attention", "num_heads": 3, "window": 4, "position": {"type": "rotary"}}
MAMBA = {"type": "mamba2", "state": 5, "head_dim": 6, "chunk": 3}
MIXER = {"type": "parallel", "mixers": [ATTENTION, MAMBA], "scales": [0.7, 1.9]}


def test_the_outputs_are_added() -> None:
    torch.manual_seed(3)
    part = ParallelOptions.model_validate(MIXER).build(LayerContext(12, 16)).eval()
    for p in part.parameters():
        nn.init.normal_(p, std=0.4)
    x = torch.randn(2, 9, 12)
    first, second = part.mixers
    torch.testing.assert_close(part(x), 0.7 * first(x) + 1.9 * second(x))


def test_attention_is_looked_at_and_outputs_start_small() -> None:
    torch.manual_seed(4)
    blocks = [{"repeat": 8, "mixer": MIXER, "ffn": "gelu"}]
    options = DecoderOptions.model_validate({"dim": 48, "blocks": blocks, "vocab_size": 11})
    model = Decoder(options, DatasetInfo(context=8)).eval()
    side = Side("text", "abcde")
    run = lambda: model(torch.arange(5)[None])  # noqa: E731
    found = found_in(model, run, lambda name, call: (side, side), Wanted(dense=True))
    assert [layer.kind for layer, _ in found.layers].count("self") == 8
    weights = found.layers[0][0].weights
    assert weights is not None
    assert weights[1].shape == (3, 5, 5)
    for mixer in model.blocks[7].mixer.mixers:  # type: ignore[union-attr]
        deviation = float(mixer.out.weight.detach().std())  # type: ignore[union-attr]
        assert deviation == pytest.approx(48**-0.5 / math.sqrt(16), rel=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixers": [ATTENTION]}, "at least 2"),
        ({"mixers": [ATTENTION, MAMBA], "scales": [1.0]}, "scales: 1 for 2 mixers"),
        ({"mixers": [{**ATTENTION, "causal": False}, MAMBA]}, "causal: false"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ParallelOptions.model_validate(values)


def test_a_mixer_that_does_not_fit_is_named() -> None:
    options = BlockOptions.model_validate({"mixer": MIXER})
    with pytest.raises(OptionError) as error:
        Block(options, LayerContext(16, 8, causal=False))
    assert [path for path, _ in error.value.faults] == [
        "mixer.mixers.0.num_heads",
        "mixer.mixers.1.type",
    ]
