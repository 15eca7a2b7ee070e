"""Building a network from an untrusted spec, bounded by the size of the weights at hand.

A short spec may describe a network that no machine holds, or one that takes minutes to build. Where
there are weights, a network that cannot be theirs is refused before it takes memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor, torch

SPARE, TIMES = 4_000_000, 30
"""Numbers allowed beside the weights at hand, and per number of them: position tables, a new head.
"""
SPARE_MODULES, MODULES = 1_000, 20
"""Modules allowed beside, and per tensor."""
FACTORIES = ("empty", "zeros", "ones", "full", "rand", "randn", "eye")

DRAWS = {
    *("normal_", "uniform_", "trunc_normal_", "xavier_uniform_", "xavier_normal_"),
    *("kaiming_uniform_", "kaiming_normal_", "orthogonal_", "exponential_", "random_"),
}
"""Functions, of `nn.init` and of tensors, that fill their first argument with random numbers."""


@contextlib.contextmanager
def within(
    weights: Mapping[str, Tensor],
    classes: int = 0,
    *,
    draw: bool = True,
    alone: Collection[torch.Size] | None = None,
) -> Iterator[None]:
    """Inside, no more modules and tensors are made than fit `weights` and a new head of `classes`.

    Without `draw`, what is made is not filled with random numbers: the weights replace all of it,
    and memory that nobody writes to is not taken. With `alone` only tensors of these shapes are
    drawn. Raises `CheckpointError` before the tensor that
    is too large is made.
    """
    from torch.nn.modules import module as hooks
    from torch.overrides import TorchFunctionMode

    widest = max((size for t in weights.values() for size in t.shape), default=1)
    held = sum(t.numel() for t in weights.values())
    most = SPARE + TIMES * held + (classes + 1) * widest
    some = not draw or alone is not None
    budget = Budget(most, SPARE_MODULES + MODULES * len(weights), held)

    class Watching(TorchFunctionMode):
        """Asks how large the result of each call will be before it is made."""

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if some and function.__name__ in DRAWS:
                filled = args[0] if args else kwargs["tensor"]
                if not draw or alone is None or filled.shape not in alone:
                    return filled
            if str(kwargs.get("device", "")) != "meta":
                budget.allow(asked(function.__name__, args))
            return function(*args, **kwargs)

    handles = [
        hooks.register_module_parameter_registration_hook(lambda module, name, p: budget.take(p)),
        hooks.register_module_buffer_registration_hook(lambda module, name, b: budget.take(b)),
        hooks.register_module_module_registration_hook(lambda module, name, m: budget.add_module()),
    ]
    try:
        with Watching(), contextlib.nullcontext() if draw else _undrawn():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _undrawn() -> Iterator[None]:
    """Truncated normals, too, are not drawn inside.

    torch draws them again until all are within the bounds, which numbers that are never drawn need
    not be.
    """
    own = torch.nn.init.trunc_normal_
    torch.nn.init.trunc_normal_ = lambda tensor, *args, **kwargs: tensor
    try:
        yield
    finally:
        torch.nn.init.trunc_normal_ = own


class Budget:
    """Counts what is built, and raises `CheckpointError` beyond the bound."""

    def __init__(self, numbers: int, modules: int, held: int) -> None:
        self.numbers, self.modules, self.held = numbers, modules, held
        self.used = self.made = 0

    def allow(self, size: int) -> None:
        """Count a tensor of `size` numbers that is about to be made."""
        if self.used + size > self.numbers:
            raise CheckpointError(
                f"the spec describes a network of {self.used + size:,} numbers or more, with its"
                f" tables of positions, and the checkpoint holds {self.held:,}: it is damaged or"
                " changed; use another, or shorten model.max_len with --set"
            )

    def take(self, tensor: Tensor | None) -> None:
        """Count a parameter or a buffer."""
        if tensor is not None and not tensor.is_meta:
            self.used += tensor.numel()
            self.allow(0)

    def add_module(self) -> None:
        """Count a module."""
        self.made += 1
        if self.made > self.modules:
            raise CheckpointError(
                f"the spec describes a network of more than {self.modules:,} modules, and the"
                " checkpoint has too few weights for that: it is damaged or changed; use another"
            )


def asked(name: str, args: tuple[Any, ...]) -> int:
    """How many numbers a torch call makes, where that may be more than it is given; else 0."""
    if name in FACTORIES:
        sizes = args[0] if args and isinstance(args[0], list | tuple) else args
        return math.prod(size for size in sizes if isinstance(size, int))
    if name == "arange":
        limits = [float(value) for value in args if isinstance(value, int | float)]
        first, last = (
            (0.0, limits[0])
            if len(limits) == 1
            else (limits[0], limits[1])
            if limits
            else (0.0, 0.0)
        )
        return int(abs((last - first) / (limits[2] if len(limits) > 2 else 1.0)))
    tensors = [value for value in args if isinstance(value, torch.Tensor) and not value.is_meta]
    if name == "outer":
        return math.prod(t.numel() for t in tensors)
    if name == "repeat" and tensors:
        return tensors[0].numel() * math.prod(_flat(args[1:]))
    if len(tensors) > 1:
        with contextlib.suppress(RuntimeError):
            return math.prod(torch.broadcast_shapes(*(t.shape for t in tensors)))
    return 0


def _flat(values: Any) -> list[int]:
    return [n for value in values for n in (value if isinstance(value, list | tuple) else [value])]
