"""What the layers of convolutional networks share: shapes, activations, and what fits where."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, Literal

from bigmodel_cli.lazy import Module, nn

Activation = Literal["none", "relu", "gelu", "silu", "tanh", "sigmoid"]
Shape = tuple[int, ...]  # (C, H, W), or (C,) after flatten


def named(**parts: Module | None) -> Module:
    """A Sequential with names, without the parts that are None."""
    there = {name: part for name, part in parts.items() if part is not None}
    return nn.Sequential(OrderedDict(there))


def activation_of(name: str) -> Module | None:
    """The module of an activation; None for none."""
    classes: dict[str, type[Module]] = {
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
    }
    return classes[name]() if name != "none" else None


def needs_image(shape: Shape, kind: str) -> None:
    """Raises `ValueError` for a layer that reads images and gets a vector."""
    if len(shape) != 3:
        raise ValueError(
            f"a {kind} layer reads an image, and its input is a vector of {shape[0]}; put it before"
            " flatten"
        )


def fits(kernel: int, shape: Shape, edge: int) -> None:
    """Raises `ValueError` for a kernel that is larger than its padded input."""
    if kernel > min(shape[1:]) + edge:
        raise ValueError(f"kernel: {kernel} is larger than its input of {shape[1]} x {shape[2]}")


def shown(shape: Shape) -> str:
    """A shape for people."""
    axes = "(channels x height x width)" if len(shape) == 3 else "values"
    return f"{' x '.join(map(str, shape))} {axes}"


def shape_after(layer: Module, shape: Shape) -> Shape | None:
    """The output shape of one of PyTorch's common layers; None for others.

    By arithmetic: PyTorch's own way, the meta device, imports its compiler, which takes a second.
    """
    if isinstance(layer, nn.Conv2d):
        return (layer.out_channels, *_windows(layer, shape, layer.padding == "same"))
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and not layer.ceil_mode:
        return (shape[0], *_windows(layer, shape))
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        size = layer.output_size
        return (shape[0], size, size) if isinstance(size, int) else None
    if isinstance(layer, nn.Flatten):
        return (math.prod(shape),)
    if isinstance(layer, nn.Linear):
        return (*shape[:-1], layer.out_features)
    same = nn.BatchNorm2d | nn.Dropout | nn.ReLU | nn.GELU | nn.SiLU | nn.Tanh | nn.Sigmoid
    return shape if isinstance(layer, same) else None


def _windows(layer: Any, shape: Shape, same: bool = False) -> list[int]:
    """How many windows of a convolution or a pooling there are in each direction."""
    if same:
        return list(shape[1:])
    around = 0 if layer.padding == "valid" else layer.padding
    apart = 1 if isinstance(layer, nn.AvgPool2d) else layer.dilation
    kernel, stride, padding, dilation = (
        (value, value) if isinstance(value, int) else value
        for value in (layer.kernel_size, layer.stride, around, apart)
    )
    return [
        (shape[i + 1] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
