"""What the layers of convolutional networks share: shapes, activations, and what fits where."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

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
