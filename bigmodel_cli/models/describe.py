"""What a model is made of: shapes layer by layer, and its floating-point operations; on the meta device, nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass

from bigmodel_cli.lazy import Module, Tensor, torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A module on the way: its path, type, the shape that it puts out, and the parameters that it holds itself."""

    path: str
    type: str
    shape: tuple[int, ...]
    parameters: int
    leaf: bool


def describe(model: Module, *example: Tensor) -> list[Layer]:
    """The modules in the order in which they finish, each with the shape of what it puts out for `example`."""
    layers: list[Layer] = []
    hooks = []
    counted: set[int] = set()
    for path, module in model.named_modules():

        def note(module: Module, inputs: object, output: object, path: str = path) -> None:
            if isinstance(output, torch.Tensor):
                own = [p for p in module.parameters(recurse=False) if id(p) not in counted]  # a tied one counts once
                counted.update(id(p) for p in own)
                leaf = next(module.children(), None) is None
                layers.append(
                    Layer(
                        path or "(model)", type(module).__name__, tuple(output.shape), sum(p.numel() for p in own), leaf
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


def flops(model: Module, *example: Tensor) -> int:
    """Floating-point operations of one forward pass over `example` (a multiply and an add are two)."""
    from torch.utils.flop_counter import FlopCounterMode

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping={kernel: _attention_flops}) as counter, torch.no_grad():
        model.eval()(*example)
    return int(counter.get_total_flops())


def _attention_flops(q: Shape, k: Shape, v: Shape, *rest: object, **named: object) -> int:
    """Of scores and of weighted values: q (B, H, T, D), k (B, H, S, D), v (B, H, S, E)."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])
