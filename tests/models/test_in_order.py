"""A ReLU after the pooling: equal to the bit to one before it; not where a layer is looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models import MODELS
from bigmodel_cli.models.cnn import CNN


def cnn() -> CNN:
    torch.manual_seed(2)
    conv: dict[str, Any] = {"type": "conv", "channels": 5, "kernel": 3, "padding": "same"}
    layers = [
        {**conv, "norm": "batch"},
        {"type": "pool", "kind": "max", "kernel": 3, "stride": 2, "padding": 1},
        {"type": "residual", "layers": [conv, {"type": "pool", "kind": "max", "kernel": 2}]},
        {**conv, "activation": "tanh"},
        {"type": "pool", "kind": "max", "kernel": 2},
        {"type": "flatten"},
        {"type": "dense", "units": "classes", "activation": "relu"},
    ]
    info = DatasetInfo(image_shape=(2, 15, 11), classes=("a", "b", "c"))
    model: CNN = MODELS["cnn"].model_validate({"type": "cnn", "layers": layers}).build(info)
    return model


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_equal_to_the_bit(kind: torch.dtype, layout: torch.memory_format) -> None:
    found = []
    for plain in (False, True):
        model = cnn().to(kind).to(memory_format=layout)
        x = (torch.randn(3, 2, 15, 11) * 4).round().div(4).to(kind)  # many are equal
        x = x.to(memory_format=layout).requires_grad_()
        if plain:
            model.layers[2].layers.register_forward_hook(lambda m, a, y: None)
            y = model.layers(x)
        else:
            y = model(x)
        y.square().sum().backward()
        found.append([y, x.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_a_hook_sees_what_the_layer_gives() -> None:
    model, seen = cnn(), list[torch.Tensor]()
    model.get_submodule("layers.0").register_forward_hook(lambda m, a, y: seen.append(y))
    model(torch.randn(2, 2, 15, 11))
    assert float(seen[0].min()) == 0  # after the ReLU
    assert seen[0].shape == (2, 5, 15, 11)
