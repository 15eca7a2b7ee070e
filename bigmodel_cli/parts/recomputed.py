"""Operations whose intermediate results are computed again in the backward pass, not kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.parts.counted import counted


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, of which only the inputs are kept for the backward pass.

    Gradients are the same to the bit. The function must draw nothing, and read no tensor that
    needs a gradient but its inputs.
    """
    unchanged = torch.compiler.is_compiling() or not torch.is_grad_enabled()
    if unchanged or counted(inputs[0]):  # what is computed twice counts once
        return function(*inputs)
    found: Tensor = _recomputing().apply(function, *inputs)
    return found


@functools.cache
def _recomputing() -> Any:
    """The class; torch is imported by now."""

    class Recomputing(torch.autograd.Function):
        """Keeps inputs alone."""

        @staticmethod
        def forward(context: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
            """The function's value."""
            kind = inputs[0].device.type
            context.function = function
            context.precision = (
                torch.get_autocast_dtype(kind)
                if kind != "meta" and torch.is_autocast_enabled(kind)
                else None
            )
            context.save_for_backward(*inputs)
            return function(*inputs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, gradient: Tensor) -> Any:
            """The inputs' gradients, by computing the value again."""
            needed = context.needs_input_grad[1:]
            kept = zip(context.saved_tensors, needed, strict=True)
            inputs = [x.detach().requires_grad_(wanted) for x, wanted in kept]
            with torch.enable_grad(), _as_before(context.precision, gradient):
                value = context.function(*inputs)
            wanted = [x for x in inputs if x.requires_grad]
            found = iter(torch.autograd.grad(value, wanted, gradient))
            return None, *(next(found) if x.requires_grad else None for x in inputs)

    return Recomputing


def _as_before(precision: torch.dtype | None, like: Tensor) -> Any:
    """Autocast as it was in the forward pass."""
    kind = "cpu" if like.is_meta else like.device.type
    return torch.autocast(kind, dtype=precision, enabled=precision is not None, cache_enabled=False)
