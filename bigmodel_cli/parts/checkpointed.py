"""Layers of which the input alone is kept for the backward pass: activation checkpointing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from bigmodel_cli.draw import again
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.counted import counted


def checkpointed(layer: Module, function: Callable[..., Tensor], x: Tensor, *more: Any) -> Tensor:
    """`function(x, *more)`, computed again in the backward pass (Chen et al. 2016).

    Losses and gradients are the same to the bit: dropout draws the same numbers again, and what
    `layer` counts in its buffers (statistics of normalisation, loads of experts) it counts once.
    """
    if not torch.is_grad_enabled() or counted(x):  # what is computed twice counts once
        return function(x, *more)
    from torch.utils.checkpoint import checkpoint

    own: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": not x.is_meta}
    if not torch.compiler.is_compiling():
        repeated = again()
        own["context_fn"] = lambda: (contextlib.nullcontext(), _once_more(layer, repeated))
    y: Tensor = checkpoint(function, x, *more, **own)
    return y


@contextlib.contextmanager
def _once_more(
    layer: Module, repeated: Callable[[], contextlib.AbstractContextManager[None]]
) -> Iterator[None]:
    """Inside, nothing is counted, and what was drawn is drawn again."""
    with _not_counting(layer), repeated():
        yield


@contextlib.contextmanager
def _not_counting(layer: Module) -> Iterator[None]:
    """Inside, copies stand in the place of the layer's buffers."""
    kept = [(m._buffers, dict(m._buffers)) for m in layer.modules() if m._buffers]
    for buffers, own in kept:
        buffers.update({name: None if b is None else b.clone() for name, b in own.items()})
    try:
        yield
    finally:
        for buffers, own in kept:
            buffers.update(own)
