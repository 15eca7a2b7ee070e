"""Frozen matrices in 4 bits, of which products read the values: QLoRA (Dettmers et al. 2023).

NormalFloat (NF4) has 16 values, with a scale for each 64 numbers, itself of 8 bits: 4.13 bits a
number. torchao quantizes and reads the values. The exact weights are in the checkpoint that the
adapter was trained on; whoever reads it quantizes the same matrices to the same bits.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

from bigmodel_cli.device import one_thread
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.packages import need

BLOCK, SCALES = 64, 256
"""Numbers with a scale in common, and scales with one: those of the paper."""
CHUNK = 1 << 16
"""Numbers that are quantized at once: it takes 16 times their memory."""


def library() -> Any:
    """torchao's module of NF4. Raises `MissingPackage`."""
    noisy = logging.getLogger("torch.utils._pytree")  # of what torchao registers twice
    before = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        place = "torchao.quantization.quantize_.workflows.nf4.nf4_tensor"
        return need(place, "quant", "adapter.base: nf4")
    finally:
        noisy.setLevel(before)


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is held in 4 bits."""
    return torch.is_tensor(weight) and type(weight) is _class()


def values(weight: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The values of a weight, as a plain tensor, whichever way it is held."""
    if not is_quantized(weight):
        plain: Tensor = weight if dtype is None else weight.to(dtype)
        return plain
    with torch.no_grad():
        found: Tensor = weight.stored.get_original_weight().to(dtype or weight.dtype)
        return found


def stored_as(weight: Any) -> list[Tensor]:
    """The tensors that hold a weight: itself, unless it is held in 4 bits."""
    if not is_quantized(weight):
        return [weight]
    q = weight.stored
    return [
        *(q.quantized_data, q.quantized_scalers),
        *(q.quantization_factor, q.scaler_mean, q.nf4),
    ]


def bytes_of(weight: Tensor) -> int:
    """The bytes that a weight takes, whichever way it is held."""
    return sum(t.numel() * t.element_size() for t in stored_as(weight))


def bytes_for(numbers: int) -> int:
    """The bytes that so many numbers take in 4 bits: with a byte for each block, and a number for
    each of their scales in common.
    """
    blocks = numbers // BLOCK
    return numbers // 2 + blocks + 4 * (blocks // math.gcd(SCALES, blocks)) + 4 * 17


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, (..., N) -> (..., M), of a weight that is held in any way.

    For the backward pass the 4 bits are kept, not their values.
    """
    if not is_quantized(weight):
        return F.linear(x, weight, bias)
    y: Tensor = _product().apply(x, weight)
    return y if bias is None else y + bias.to(y.dtype)


def largest(tensor: Tensor) -> Tensor:
    """The largest magnitude of each block of a contiguous tensor, in fp32, without a copy of it."""
    parts = tensor.detach().flatten().split(CHUNK)
    return torch.cat([part.float().view(-1, BLOCK).abs().amax(1) for part in parts])


def on_device(weight: Any, device: torch.device) -> Any:
    """A weight of 4 bits on another device."""
    nf4, q = library(), weight.stored
    shape = (q.size(), q.stride(), 0, q.dtype, device, False)
    stored = nf4.NF4Tensor(
        nf4.SubclassTensorArgs(*shape),
        *(q.block_size, q.n_blocks, q.scaler_block_size),
        *(t.to(device) for t in (q.quantized_scalers, q.quantization_factor, q.scaler_mean)),
        q.quantized_data.to(device),
        nf4=q.nf4.to(device),
    )
    return _class()(stored, weight.dtype)


def in_four_bits(tensor: Tensor) -> Tensor:
    """A matrix (M, N), of a multiple of 64 numbers, in 4 bits, as torchao's `to_nf4` does.

    The mean of scales is taken on the CPU: it depends on the device and the number of threads, and
    all else does not. So the bits are the same wherever the weights are read.
    """
    nf4 = library()
    exact = tensor.contiguous()
    blocks, device = exact.numel() // BLOCK, exact.device
    scales = math.gcd(SCALES, blocks)
    with torch.no_grad(), one_thread():
        # of blocks of one number each, which are their own largest
        scalers = nf4.NF4Tensor.double_quantize_scalers(largest(exact).cpu(), 1, scales)
    table = nf4.to_nf4(torch.ones(1, BLOCK, device=device), BLOCK, 1).nf4
    shape = (exact.size(), exact.stride(), 0, torch.float32, device, False)
    with torch.no_grad():
        codes = [
            nf4.NF4Tensor.convert_to_norm_float_weight(
                part.float(), part.numel() // BLOCK, BLOCK, table
            )
            for part in exact.flatten().split(CHUNK)
        ]
        stored = nf4.NF4Tensor(
            nf4.SubclassTensorArgs(*shape),
            BLOCK,
            blocks,
            scales,
            *(t.to(device) for t in scalers),
            torch.cat(codes),
            nf4=table,
        )
    found: Tensor = _class()(stored, tensor.dtype)
    return found


@functools.cache
def _class() -> Any:
    """The class of 4-bit weights; torch is imported by now."""
    from torch.utils._pytree import tree_map

    class FourBitWeight(torch.Tensor):
        """A frozen matrix whose values are computed where they are needed; it cannot be written.

        Its dtype is that of the weight that it was made of.
        """

        stored: Any

        @staticmethod
        def __new__(cls: Any, stored: Any, dtype: torch.dtype) -> Any:
            return torch.Tensor._make_wrapper_subclass(
                cls, stored.shape, dtype=dtype, device=stored.device, requires_grad=False
            )

        def __init__(self, stored: Any, dtype: torch.dtype) -> None:
            self.stored = stored

        def __repr__(self) -> str:  # type: ignore[override]
            return f"FourBitWeight({list(self.shape)}, {self.dtype}, {self.device})"

        @classmethod
        def __torch_function__(
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function is F.linear and len(args) > 1 and type(args[1]) is cls:
                return linear(*args, **(kwargs or {}))
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **(kwargs or {}))

        @classmethod
        def __torch_dispatch__(  # type: ignore[override]
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
                with torch.inference_mode(False):
                    return cls(args[0].stored, args[0].dtype)
            if function is torch.ops.aten.set_.source_Tensor and args[0].device == args[1].device:
                args[0].stored = args[1].stored  # Module.to gives a parameter what it has already
                return args[0]
            written = zip(function._schema.arguments, args, strict=False)
            if any(a.alias_info and a.alias_info.is_write and type(v) is cls for a, v in written):
                raise RuntimeError(f"{function}: a weight of 4 bits cannot be written")
            args, kwargs = tree_map(plain, (args, kwargs or {}))
            return function(*args, **kwargs)

    def plain(value: Any) -> Any:
        return values(value) if type(value) is FourBitWeight else value

    return FourBitWeight


@functools.cache
def _product() -> Any:
    """The class of products with 4-bit weights."""

    class Product(torch.autograd.Function):
        """x W^T of a 4-bit W, which has no gradient."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Any) -> Tensor:
            kind = x.device.type
            mixed = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if mixed else x.dtype
            ctx.weight, ctx.dtype = weight, x.dtype
            return F.linear(x.to(dtype), values(weight, dtype))

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            (y,) = gradients
            return (y @ values(ctx.weight, y.dtype)).to(ctx.dtype), None

    return Product
