"""A model's layers with their shapes, and its FLOPs, found on the meta device without computing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.counted import counting
from bigmodel_cli.roles import PARAMETRIZED

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A module: its path, type, output shape, and the number of its own parameters."""

    path: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    leaf: bool


def describe(model: Module, *example: Tensor) -> list[Layer]:
    """The modules in the order in which they finish, with their output shapes for `example`.

    An adapter counts as part of the layer whose weight it adapts.
    """
    layers: list[Layer] = []
    hooks = []
    counted: set[int] = set()
    for path, module in model.named_modules():
        if PARAMETRIZED in f".{path}.":
            continue

        def note(module: Module, inputs: object, output: object, path: str = path) -> None:
            if isinstance(output, torch.Tensor):
                # A tied one counts once.
                named = module.named_parameters()
                own = [p for name, p in named if _is_own(name) and id(p) not in counted]
                counted.update(id(p) for p in own)
                leaf = next(module.children(), None) is None
                layers.append(
                    Layer(
                        path or "(model)",
                        type(module).__name__,
                        tuple(output.shape),
                        sum(p.numel() for p in own),
                        leaf,
                    )
                )

        hooks.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            model.eval()(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def _is_own(name: str) -> bool:
    """Whether a weight below a module is its own, or of its own weights' adapters."""
    return "." not in name or f".{name}".startswith(PARAMETRIZED)


def flops(model: Module, *example: Tensor) -> int:
    """FLOPs of one forward pass over `example` (a multiply and an add are two)."""
    return useful_flops(lambda: model.eval()(*example))


def training_flops(model: Module, *example: Tensor) -> int:
    """FLOPs of a forward and a backward pass, gradients of frozen first layers left out.

    Where all weights are trained, that is about three times the forward pass.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # with one sample it may have one value per channel, which it refuses in training
            module.eval()

    def both() -> None:
        output = model(*example)
        torch.autograd.grad(output, weights, torch.empty_like(output), allow_unused=True)

    return useful_flops(both, gradients=True)


def useful_flops(work: Callable[[], object], gradients: bool = False) -> int:
    """FLOPs that `work`, on the meta device, needs by its mathematics: matrix products and
    convolutions, and what attention and recurrences tell (parts/counted.py).

    Pairs that no query sees and experts that no token takes do not count, nor does what a kernel
    computes twice. All positions count, padding too.
    """
    from torch.utils.flop_counter import FlopCounterMode

    # whose groups the counter ignores
    mapping = {torch.ops.aten.convolution_backward: convolution_gradient_flops}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with counter, counting() as told, torch.set_grad_enabled(gradients):
        work()
    return int(counter.get_total_flops()) + told.flops


def convolution_gradient_flops(
    gradient: Shape, x: Shape, weight: Shape, *rest: Any, **named: object
) -> int:
    """FLOPs of the gradients of input and weight (out, in / groups, ...), as asked for."""
    transposed, wanted = rest[4], rest[7]
    places = x if transposed else gradient
    return (
        2
        * places[0]
        * math.prod(places[2:])
        * math.prod(weight)
        * (int(wanted[0]) + int(wanted[1]))
    )
