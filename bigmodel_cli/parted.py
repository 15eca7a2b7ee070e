"""Tensors of which this process has a part, and others the rest: what is asked of any tensor."""

from __future__ import annotations

import math
from typing import Any

from bigmodel_cli.distributed import gathered_by, world
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.tensor_parallel import is_placed, share_of


def is_part(tensor: Any) -> bool:
    """Whether other processes have the rest of a tensor."""
    if world().alone:  # nothing of torch.distributed is imported
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor) or is_placed(tensor)


def place_of(part: Any) -> tuple[int, int, int]:
    """(axis, first, count) of what this process keeps of a tensor that is divided."""
    last = part.device_mesh.ndim - 1
    count, rank = part.device_mesh.size(last), part.device_mesh.get_local_rank(last)
    axis = part.placements[last].dim
    size = part.shape[axis]
    each = math.ceil(size / count)
    first = min(rank * each, size)
    return axis, first, min(each, size - first)


def put(target: Any, tensor: Any) -> None:
    """Copy a tensor into a target of which this process may keep but a part."""
    if not is_part(target):
        target.copy_(tensor)
        return
    if is_placed(target):
        put(target.local, share_of(target, tensor))
        return
    given = tensor.to_local() if is_part(tensor) else tensor.narrow(*place_of(target))
    target.to_local().copy_(given)


def key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same numbers in memory; a part, which may be empty, is the
    same where it is the same object.
    """
    if is_part(tensor):
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, of which this process may have but a part; then all call it."""
    if not is_part(tensor):
        return tensor
    given: Any = tensor
    part = given.local if is_placed(tensor) else given
    share: Tensor = part.full_tensor() if is_part(part) else part
    return given.piece.whole(share) if is_placed(tensor) else share


def whole_at(tensor: Tensor, rank: int) -> Tensor | None:
    """All of a divided tensor in the process of that rank, None in others; all of them call it."""
    found = None
    part: Any = tensor
    axes = () if is_placed(tensor) else part.placements
    divided = [n for n, placement in enumerate(axes) if not placement.is_replicate()]
    if not tensor.numel() or len(divided) != 1 or not _is_plain(axes[divided[0]]):
        found = whole(tensor)  # all of them get it
        return found if world().rank == rank else None
    axis, among = axes[divided[0]].dim, part.device_mesh.get_group(divided[0])
    each = math.ceil(tensor.shape[axis] / part.device_mesh.size(divided[0]))
    local = part.to_local().detach()
    padded = local.new_zeros([each if n == axis else size for n, size in enumerate(tensor.shape)])
    padded.narrow(axis, 0, local.shape[axis]).copy_(local)
    every = gathered_by(rank, padded, among)
    return None if every is None else torch.cat(every, axis).narrow(axis, 0, tensor.shape[axis])


def _is_plain(placement: Any) -> bool:
    """Whether it divides an axis in order; one of an axis that is divided twice does not."""
    from torch.distributed.tensor import Shard

    return type(placement) is Shard
