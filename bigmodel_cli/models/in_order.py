"""Layers one after another, where a ReLU before a maximum is computed after it.

The maximum of a window and a ReLU give the same in either order, to the bit, and so does the
gradient: where the maximum is above zero it is of the same place, and below it there is none. After
the pooling the ReLU has a quarter of the numbers, which saves a tenth of a small CNN's step.
"""

from __future__ import annotations

from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.logits import wide_logits


def in_order(layers: nn.Sequential, x: Tensor) -> Tensor:
    """layers(x)."""
    if _looked_at(layers):  # somebody wants to see what comes out of a layer
        found: Tensor = layers(x)
        return found
    every, at = list(layers), 0
    while at < len(every):
        before = _before_relu(every[at])
        if before is not None and at + 1 < len(every) and isinstance(every[at + 1], nn.MaxPool2d):
            for part in before:
                x = part(x)
            x, at = F.relu(every[at + 1](x)), at + 2
        else:
            last = at + 1 == len(every)
            x, at = _outputs(every[at], x) if last else every[at](x), at + 1
    return x


def _outputs(layer: Module, x: Tensor) -> Tensor:
    """Of the last layer: logits, or numbers."""
    *before, last = list(layer) if isinstance(layer, nn.Sequential) and len(layer) else [layer]
    for part in before:
        x = part(x)
    return wide_logits(x, last)


def _before_relu(layer: Module) -> list[Module] | None:
    """The parts of a layer before the ReLU that it ends with; None where it does not."""
    parts = list(layer) if isinstance(layer, nn.Sequential) else []
    return parts[:-1] if parts and isinstance(parts[-1], nn.ReLU) else None


def _looked_at(layers: Module) -> bool:
    """Whether any hook is set in it, or on all modules."""
    common = torch.nn.modules.module
    if common._global_forward_hooks or common._global_forward_pre_hooks:
        return True
    if common._global_backward_hooks or common._global_backward_pre_hooks:
        return True
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in layers.modules()
    )
