"""Shapes by arithmetic against what the layers give, and no compiler for them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from bigmodel_cli.models.layer_shapes import shape_after
from bigmodel_cli.models.layers import output_shape

LAYERS = [
    nn.Conv2d(3, 5, 3),
    nn.Conv2d(3, 6, (3, 5), stride=(2, 3), padding=(1, 4), dilation=(2, 1), groups=3),
    nn.Conv2d(3, 4, 4, padding="same"),
    nn.Conv2d(3, 4, 4, padding="valid", stride=3),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1),
    nn.AvgPool2d(4, 3, 2),
    nn.AdaptiveAvgPool2d(2),
    nn.AdaptiveMaxPool2d(1),
    nn.Flatten(),
    nn.BatchNorm2d(3),
    nn.Sequential(nn.Conv2d(3, 2, 2), nn.GELU(), nn.Flatten(), nn.Linear(2 * 10 * 12, 7)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_shapes_are_those_of_the_layer(layer: nn.Module) -> None:
    given = layer.eval()(torch.randn(1, 3, 11, 13)).shape[1:]
    assert output_shape(layer, (3, 11, 13)) == tuple(given)


def test_others_are_tried_on_the_meta_device() -> None:
    layer = nn.MaxPool2d(2, ceil_mode=True)
    assert shape_after(layer, (3, 11, 13)) is None
    assert output_shape(layer, (3, 11, 13)) == (3, 6, 7)


def test_a_cnn_is_built_without_the_compiler() -> None:
    code = """
import sys
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models import MODELS
layers = [{"type": "conv", "channels": 3}, {"type": "pool"}, {"type": "flatten"},
          {"type": "dense", "units": "classes"}]
info = DatasetInfo(image_shape=(1, 9, 9), classes=("a", "b"))
MODELS["cnn"].model_validate({"type": "cnn", "layers": layers}).build(info)
assert "torch" in sys.modules
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
