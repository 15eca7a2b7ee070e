"""A model's layers with their shapes, and its FLOPs, found on the meta device without computing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.lazy import Module, Tensor, torch
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
    with _counter() as counter, torch.no_grad():
        model.eval()(*example)
    return int(counter.get_total_flops())


def training_flops(model: Module, *example: Tensor) -> int:
    """FLOPs of a forward and a backward pass, gradients of frozen first layers left out.

    Where all weights are trained, that is about three times the forward pass. What a kernel
    computes a second time does not count.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # with one sample it may have one value per channel, which it refuses in training
            module.eval()
    with _counter() as counter:
        output = model(*example)
        torch.autograd.grad(output, weights, torch.empty_like(output), allow_unused=True)
    return int(counter.get_total_flops())


def _counter() -> Any:
    """PyTorch's counter, extended by what it does not know."""
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_gradient_flops,
        aten.convolution_backward: (
            _convolution_gradient_flops
        ),  # whose groups the counter ignores
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _attention_flops(q: Shape, k: Shape, v: Shape, *rest: object, **named: object) -> int:
    """FLOPs of attention: q (B, H, T, D), k (B, H, S, D), v (B, H, S, E)."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def _attention_gradient_flops(
    gradient: Shape, q: Shape, k: Shape, v: Shape, *rest: object, **named: object
) -> int:
    """FLOPs of the gradients of both factors of both products."""
    return 2 * _attention_flops(q, k, v)


def _convolution_gradient_flops(
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
