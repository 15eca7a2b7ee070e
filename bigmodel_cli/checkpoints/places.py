"""Where tensors go as they are read: into memory that waits for them, or to whoever takes them."""

from __future__ import annotations

from collections.abc import Callable

from bigmodel_cli.lazy import Tensor
from bigmodel_cli.parted import is_part, put

Complete = Callable[[str, Tensor], None]
"""Is given each tensor for which there is no memory, by name, when it has been read."""


def refused(name: str, tensor: Tensor) -> None:
    """Where nobody is to take tensors over."""
    raise AssertionError(f"{name}: there is no memory for it")


def give(name: str, tensor: Tensor, target: Tensor, complete: Complete) -> None:
    """Copy what was read into its target, or give it to `complete`."""
    if target.is_meta:
        complete(name, tensor.to(target.dtype))
    else:
        put(target, tensor)


def is_same(target: Tensor, tensor: Tensor) -> bool:
    """Whether a target is the memory that was read into."""
    return not (target.is_meta or is_part(target)) and (target.device, target.data_ptr()) == (
        tensor.device,
        tensor.data_ptr(),
    )
