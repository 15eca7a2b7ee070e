"""Checking a model's memory while it is built; and building without values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from bigmodel_cli.lazy import nn, torch

FILLS = frozenset({"normal_", "uniform_", "fill_", "zero_"})
"""Initialisers: on the meta device they do nothing, but would import the compiler."""


class Oversize(Exception):
    """More memory is asked for than there is: shape and bytes of the tensor that did not fit."""

    def __init__(self, shape: tuple[int, ...], size: int) -> None:
        super().__init__(shape, size)
        self.shape, self.size = shape, size


@contextlib.contextmanager
def watched(room: float) -> Iterator[Any]:
    """Inside, `Oversize` is raised before new tensors exceed `room` bytes in all.

    Tensors made from a shape count, as weights are. On the meta device nothing counts and nothing
    is filled. The context has the `shape` asked for last.
    """
    from torch.overrides import TorchFunctionMode

    # They hide what they call.
    fills = {
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.constant_,
        nn.init.kaiming_uniform_,
    }
    makers = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full}

    class Watch(TorchFunctionMode):
        """Sees each call of PyTorch."""

        used = 0
        shape: tuple[int, ...] = ()

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if function in makers:
                self.note(args[:1] if function is torch.full else args, kwargs)
            elif function in fills or getattr(function, "__name__", "") in FILLS:
                filled = args[0] if args else kwargs["tensor"]
                if filled.is_meta:
                    return filled
            return function(*args, **kwargs)

        def note(self, args: Any, kwargs: Any) -> None:
            sizes = args or (kwargs.get("size", ()),)
            self.shape = tuple(int(n) for n in (sizes if isinstance(sizes[0], int) else sizes[0]))
            if torch.device(kwargs.get("device") or torch.get_default_device()).type == "meta":
                return
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            size = math.prod(self.shape) * dtype.itemsize
            self.used += size
            if self.used > room:
                raise Oversize(self.shape, size)

    with Watch() as watch:
        yield watch
