"""Products of linear layers on CPUs for which PyTorch's usual way is a slow one.

On x86 PyTorch multiplies matrices in fp32 by Intel's MKL. On processors of other makers that takes
code for older ones, at less than half of the speed of oneDNN, which PyTorch has too, and takes one
thread for a single row. Both compute in fp32 and differ by rounding.

A single row in bf16 is a product of a matrix and a vector, which has to read the matrix and no
more. oneDNN, made for matrices, reads it at half of the speed of PyTorch's own sums of rows, which
are in fp32 too and are rounded once.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

from bigmodel_cli.lazy import F, Module, Tensor, nn, torch

CPUINFO = Path("/proc/cpuinfo")
BLOCKS = 8
"""Of a weight's rows, when one row is multiplied: each is a thread's."""
LEAST, LEAST_OF_SEVERAL = 1 << 18, 1 << 22
"""Fewest multiplications for which blocks, and oneDNN, pay: either takes some microseconds to
begin.
"""


@functools.cache
def applies() -> bool:
    """Whether this machine's MKL is slow, and oneDNN is there."""
    if not x86():
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return maker(CPUINFO) not in ("", "GenuineIntel") and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )


@functools.cache
def x86() -> bool:
    """Whether that is this machine's processor."""
    return platform.machine().lower() in ("x86_64", "amd64")


def maker(path: Path) -> str:
    """The maker of the processor, as Linux tells it in this file; "" where it does not."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor"))
            return next(named, "")
    except OSError:
        return ""


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., N), weight (M, N), bias (M) -> (..., M)   `F.linear` in the fastest way.

    Other ways than PyTorch's own are taken for plain tensors on a CPU without gradients.
    """
    work = x.numel() * weight.shape[0]
    if (
        torch.is_grad_enabled()
        or x.dtype is not weight.dtype
        or type(weight) is not nn.Parameter
        or type(x) is not torch.Tensor
        or x.device.type != "cpu"
        or torch.compiler.is_compiling()
    ):
        return F.linear(x, weight, bias)
    if x.dtype is torch.bfloat16:
        return _row_of_16_bits(x, weight, bias)
    if (
        work < LEAST
        or x.dtype is not torch.float32
        or torch.is_autocast_enabled("cpu")
        or not applies()
    ):
        return F.linear(x, weight, bias)
    if x.numel() == x.shape[-1] and weight.is_contiguous():
        return _row(x, weight, bias)
    if work < LEAST_OF_SEVERAL:
        return F.linear(x, weight, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _row_of_16_bits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., N) -> (..., M)   one row by sums of its own; several as PyTorch multiplies them."""
    if x.numel() != x.shape[-1] or not (bias is None or bias.dtype is x.dtype) or not x86():
        return F.linear(x, weight, bias)
    row = x.reshape(-1)
    y = torch.mv(weight, row) if bias is None else torch.addmv(bias, weight, row)
    return y.view(*x.shape[:-1], len(weight))


def _row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., N), all of them but N 1 -> (..., M)   in blocks of the weight's rows."""
    inputs, outputs = x.shape[-1], len(weight)
    size = outputs // BLOCKS
    whole = size * BLOCKS
    column = x.reshape(1, inputs).t()  # (N, 1), in the layout that is fast
    blocks = weight[:whole].view(BLOCKS, size, inputs)
    y = torch.bmm(blocks, column.expand(BLOCKS, inputs, 1)).view(whole)
    if whole < outputs:
        y = torch.cat((y, torch.mv(weight[whole:], column[:, 0])))
    return (y if bias is None else y + bias).view(*x.shape[:-1], outputs)


def quicken(model: Module) -> None:
    """Let the linear layers of a model multiply by `product`, where that is faster here.

    Their weights, their names and their class's name stay.
    """
    if x86():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _linear()


def is_plain(module: Module) -> bool:
    """Whether it is PyTorch's linear layer, quickened or not, which computes nothing else."""
    return type(module) in kinds()


def kinds() -> tuple[type[nn.Linear], type[nn.Linear]]:
    """PyTorch's linear layer, and the quickened one."""
    return nn.Linear, _linear()


@functools.cache
def _linear() -> type[nn.Linear]:
    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)

    names = {"__doc__": nn.Linear.__doc__, "__module__": __name__, "forward": forward}
    return type("Linear", (nn.Linear,), names)


def __getattr__(name: str) -> type[nn.Linear]:
    """The class, by the name under which a pickle of a layer looks for it."""
    if name == "Linear":
        return _linear()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
