"""Choice of device, its memory, and the precision of computation."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from bigmodel_cli.errors import ResourceError, SpecError, did_you_mean
from bigmodel_cli.lazy import Tensor, torch

PRECISIONS = ("fp32", "bf16", "fp16")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def pick_device(wanted: str, say: Callable[[str], None]) -> torch.device:
    """The device called `wanted` ('auto', 'cpu', 'cuda', 'cuda:N', 'mps'); 'auto' takes CUDA, then
    MPS, then the CPU.

    Reports the choice and its reason. Raises `ResourceError` where the requested device is missing
    (never a silent fall-back), and `SpecError` for a name that is not a device.
    """
    kind, _, number = wanted.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (
        number and not (kind == "cuda" and re.fullmatch("[0-9]{1,4}", number))
    ):
        hint = (
            "; a GPU is cuda (NVIDIA, AMD) or mps (Apple), and auto finds it"
            if kind in ("gpu", "rocm", "hip", "metal")
            else did_you_mean(wanted, ("auto", "cpu", "cuda", "mps"))
        )
        raise SpecError(f"--device {wanted}: not one of auto, cpu, cuda, cuda:N, mps{hint}")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if kind == "auto":
        kind = "cuda" if has_cuda else "mps" if has_mps else "cpu"
        why = {
            "cuda": "CUDA is available",
            "mps": "MPS is available",
            "cpu": "neither CUDA nor MPS is available",
        }[kind]
    else:
        why = "as asked"
    if kind == "cuda":
        if not has_cuda:
            raise ResourceError(
                f"--device {wanted}: this machine has no usable CUDA device; use --device cpu or"
                " auto"
            )
        if int(number or 0) >= torch.cuda.device_count():
            raise ResourceError(
                f"--device {wanted}: the last CUDA device of this machine is"
                f" cuda:{torch.cuda.device_count() - 1}"
            )
        device = torch.device("cuda", int(number or torch.cuda.current_device()))
        exact_fp32()
    elif kind == "mps":
        if not has_mps:
            raise ResourceError(
                "--device mps: MPS is not available on this machine; use --device cpu or auto"
            )
        device = torch.device("mps")
    else:
        device = torch.device("cpu")
        keep_freed_memory()
    say(f"device: {describe_device(device)} ({why})")
    return device


def exact_fp32() -> None:
    """Let a GPU's convolutions in fp32 be in fp32: PyTorch rounds their factors to 10 bits (TF32)
    unless told otherwise, which moves a loss by a part in a thousand.
    """
    torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, the CPU computes with one thread: sums do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_few_kernels() -> None:
    """Limit oneDNN's cache to 64 kernels instead of 1,024: call it before computing on batches of
    many lengths.

    On a CPU oneDNN compiles a kernel for each shape of each product; cached kernels of shapes that
    rarely recur fill gigabytes. Keep its default for batches of one shape: a large CNN needs
    hundreds of kernels.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # read at the first product


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation instead of returning it to the kernel.

    A step frees and allocates the same activations over and over. Returning them makes every page
    fault anew, which costs a small CNN on a CPU a third of its time. Settings in the environment
    are left alone.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:  # missing on macOS
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc accepts
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def give_freed_memory_back() -> None:
    """Let glibc return to the kernel what is freed and was kept (`keep_freed_memory`)."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # missing on macOS
        trim(0)


def describe_device(device: torch.device) -> str:
    """A short name for people: 'cuda:0 NVIDIA H200', 'cpu with 2 threads'."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return str(device)
    count = torch.get_num_threads()
    return f"cpu with {count} thread{'s' * (count != 1)}"


def is_cuda(device: torch.device) -> bool:
    """Whether it is a GPU that PyTorch calls CUDA."""
    return device.type == "cuda"


def is_cpu(device: torch.device) -> bool:
    """Whether operations are over when they return."""
    return device.type == "cpu"


def total_memory(device: torch.device) -> int:
    """The device's total memory in bytes (for the CPU and MPS: the machine's)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return total_memory_of_machine()


def total_memory_of_machine() -> int:
    """The machine's total memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work (before reading a clock)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device, without a wait for what it is doing.

    CUDA may wait for all that was asked of it before it copies from memory that is not pinned.
    """
    if not is_cuda(device) or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(N,) the values on the device, sent there once; to be read alone."""
    if torch._C._len_torch_dispatch_stack():  # a tensor without numbers (bench --plan) is not kept
        return torch.tensor(values, dtype=dtype, device=device)
    return _constant(values, device, dtype)


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # else it could not take part in a training
        return torch.tensor(values, dtype=dtype, device=device)


def dtype_of(precision: str) -> torch.dtype:
    """The dtype in which matrix products are computed under that precision."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Turns autocast off inside."""
    if device.type == "meta":  # which knows no autocast
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which products are computed in `precision`, with weights kept in fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype_of(precision))


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of a product with this weight: autocast's precision, or the weight's own, as always
    on a CPU.

    There attention of single queries is faster in fp32 (see parts/kernels.py).
    """
    kind = weight.device.type
    if (
        kind not in ("cpu", "meta")
        and weight.dtype == torch.float32
        and torch.is_autocast_enabled(kind)
    ):
        return torch.get_autocast_dtype(kind)
    return weight.dtype
