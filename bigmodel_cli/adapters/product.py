"""A weight plus a product of narrow factors, multiplied without ever being summed.

`F.linear(x, W + B A)` is `F.linear(x, W) + F.linear(F.linear(x, A), B)`: the sum would take a copy
of each weight in memory, and its gradient as much time as that of the whole weight. So the adapted
weight is a tensor that answers such calls itself. Any other use of it gets the sum, so that no
network can overlook the adapter, whatever it does with its weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.adapters.four_bits import is_quantized, linear, values
from bigmodel_cli.device import full_precision
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.parts.dropout import dropout as dropped


@dataclass(frozen=True)
class LowRank:
    """W (M, ...) + B A, where W counts as (M, N): A (R, N), B (M, R); or (E, M, N), with a stack of
    factors.

    The rows of the sum are multiplied by `rows` (M), its columns by `columns` (N).
    """

    weight: Tensor
    a: Tensor
    b: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None
    dropout: float = 0.0

    def dense(self) -> Tensor:
        """The sum. Raises `SpecError` where the factors' input was to be dropped."""
        if self.dropout:
            raise SpecError(
                "adapter.dropout: a weight is read in another way than by a linear layer, a"
                " convolution or a look-up, where no input can be dropped; set it to 0"
            )
        with full_precision(self.weight.device):
            product = self.b @ self.a
            y = values(self.weight) + product.view(self.weight.shape)
            if self.rows is not None:
                y = y * self.rows.view(*self.rows.shape, *[1] * (y.dim() - self.rows.dim()))
            return y if self.columns is None else y * self.columns

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., N) -> (..., M)"""
        if self.columns is not None:
            x = x * self.columns
        narrow = F.linear(dropped(x, self.dropout, True), self.a)
        if self.rows is None:
            return linear(x, self.weight, bias) + F.linear(narrow, self.b)
        y = self.rows * (linear(x, self.weight) + F.linear(narrow, self.b))
        return y if bias is None else y + bias

    def embedding(self, index: Tensor, padding_idx: int | None = None) -> Tensor:
        """(...) -> (..., N)"""
        y = F.embedding(index, self.weight) + F.embedding(index, self.b, padding_idx) @ self.a
        return y if self.columns is None else y * self.columns

    def convolution(
        self, convolve: Callable[..., Tensor], x: Tensor, bias: Tensor | None, *where: Any
    ) -> Tensor:
        """(B, N, ...) -> (B, M, ...); `where`: stride, padding, dilation."""
        kernel, axes = self.weight.shape[1:], self.weight.dim() - 2
        narrow = convolve(dropped(x, self.dropout, True), self.a.view(-1, *kernel), None, *where)
        y = convolve(x, self.weight, None, *where)
        y = y + convolve(narrow, self.b.view(*self.b.shape, *[1] * axes))
        for numbers, operation in ((self.rows, torch.mul), (bias, torch.add)):
            if numbers is not None:
                y = operation(y, numbers.view(-1, *[1] * axes))
        return y

    def to(self, dtype: torch.dtype) -> LowRank:
        """In another precision."""
        rows, columns = (x if x is None else x.to(dtype) for x in (self.rows, self.columns))
        a, b = self.a.to(dtype), self.b.to(dtype)
        return LowRank(values(self.weight).to(dtype), a, b, rows, columns, self.dropout)

    def nth(self, index: int) -> LowRank:
        """One of a stack."""
        rows = None if self.rows is None else self.rows[index]
        return LowRank(self.weight[index], self.a[index], self.b[index], rows, None, self.dropout)


@functools.cache
def _adapted_class() -> type[Tensor]:
    """The class of adapted weights; torch is imported by now."""
    from torch.utils._pytree import tree_map

    convolutions = (F.conv1d, F.conv2d, F.conv3d)
    described = {
        *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")),
        *(getattr(torch.Tensor, name).__get__ for name in ("is_cuda", "is_meta", "layout")),
        torch.Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
        *(getattr(torch.Tensor, name) for name in ("dim", "size", "numel", "element_size")),
        *(torch.Tensor.is_floating_point, torch.Tensor.new_empty, torch.Tensor.__len__),
    }

    class AdaptedWeight(torch.Tensor):
        """A weight whose value is that of `low_rank`; shape, dtype and device are those of the
        frozen weight.
        """

        low_rank: LowRank

        @classmethod
        def __torch_function__(
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                if function in described:
                    return function(*args, **(kwargs or {}))
                place = function in (F.linear, F.embedding, *convolutions)
                if len(args) > place and isinstance(args[place], AdaptedWeight):
                    found = shortcut(args[place].low_rank, function, args, kwargs or {})
                    if found is not None:
                        return found
                args, kwargs = tree_map(dense, (args, kwargs or {}))
                return function(*args, **kwargs)

    def shortcut(value: LowRank, function: Any, args: Any, kwargs: Any) -> Tensor | None:
        """The answer without the sum, where there is one."""
        if function is F.linear:
            return value.linear(args[0], *args[2:], **kwargs)
        if function is F.embedding:
            # as torch passes them on
            usual = {"max_norm": None, "scale_grad_by_freq": False, "sparse": False}
            if len(args) == 2 and usual.items() <= kwargs.items():
                return value.embedding(args[0], kwargs["padding_idx"])
        if function in convolutions and args[6:] == (1,) and not kwargs:
            return value.convolution(function, args[0], *args[2:6])
        if function is torch.Tensor.to and len(args) == 2 and not kwargs:
            return adapted(value.to(args[1])) if isinstance(args[1], torch.dtype) else None
        is_item = function is torch.Tensor.__getitem__ and type(args[1]) is int
        if is_item and value.weight.dim() == value.a.dim() == 3:
            return adapted(value.nth(args[1]))
        return None

    def dense(value: Any) -> Any:
        return value.low_rank.dense() if isinstance(value, AdaptedWeight) else value

    return AdaptedWeight


def adapted(value: LowRank) -> Tensor:
    """A weight with this value; the sum itself where torch.compile traces, which follows no tensor
    of our own.
    """
    if torch.compiler.is_compiling():
        return value.dense()
    shell = value.weight
    if is_quantized(shell):  # it has no storage of its own; nothing reads the shell's
        shell = torch.empty((), dtype=shell.dtype, device=shell.device).expand(shell.shape)
    weight: Any = shell.detach().as_subclass(_adapted_class())
    weight.low_rank = value
    found: Tensor = weight
    return found


def summed(weight: Any) -> Tensor:
    """The value of an adapted weight."""
    value: LowRank = weight.low_rank
    return value.dense()
