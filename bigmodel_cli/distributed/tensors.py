"""Sums of tensors over processes, and the tensors of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bigmodel_cli.distributed.who import samples, samples_group, world
from bigmodel_cli.lazy import Tensor, torch

BUCKET = 8 << 20
"""Bytes of tensors that are sent at once."""
Fold = Callable[[list[Tensor]], Tensor]
"""Makes one tensor of those of all processes, by rank."""


def sum_(tensors: Sequence[Tensor], fold: Fold | None = None) -> None:
    """Replace each tensor by its sum over `samples`: the same bits in all of them.

    With `fold`, which is to work element by element, by what it makes of the tensors of each.
    """
    if samples().alone:
        return
    import torch.distributed as dist

    for bucket in in_buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        if fold is None:
            dist.all_reduce(flat, group=samples_group())
        else:
            flat = fold(gathered(flat))
        parts = flat.split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(
            list(bucket), [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)]
        )


def in_buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups of one dtype and of about `BUCKET` bytes, in order."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


def from_first(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by the first process's."""
    if world().alone:
        return
    import torch.distributed as dist

    with torch.no_grad():
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, 0)
            tensor.copy_(sent)


def most(number: int) -> int:
    """The greatest of the numbers that each process gives; nobody waits for a GPU."""
    if world().alone:
        return number
    import torch.distributed as dist

    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gathered_bytes(content: bytes) -> list[bytes]:
    """What each of `samples` gives, of any length, by rank."""
    if samples().alone:
        return [content]
    longest = most(len(content))
    own = torch.zeros(8 + longest, dtype=torch.uint8)
    own[: 8 + len(content)] = torch.frombuffer(
        bytearray(len(content).to_bytes(8, "little") + content), dtype=torch.uint8
    )
    found = [row.numpy().tobytes() for row in gathered(own)]
    return [row[8 : 8 + int.from_bytes(row[:8], "little")] for row in found]


def gathered(tensor: Tensor) -> list[Tensor]:
    """The tensor of each of `samples`, by rank; of one shape and dtype everywhere."""
    if samples().alone:
        return [tensor]
    import torch.distributed as dist

    found = [torch.empty_like(tensor) for _ in range(samples().size)]
    dist.all_gather(found, tensor.contiguous(), group=samples_group())
    return found


def gathered_by(rank: int, tensor: Tensor, group: Any) -> list[Tensor] | None:
    """In the process of that rank the tensor of each of its group, in order; None in others, of
    which those of other groups exchange nothing. It is of one shape and dtype everywhere.
    """
    import torch.distributed as dist

    ranks = dist.get_process_group_ranks(group)
    if rank not in ranks:
        return None
    content = tensor.contiguous().reshape(-1).view(torch.uint8)  # gloo does not know all dtypes
    found = [torch.empty_like(content) for _ in ranks] if world().rank == rank else None
    dist.gather(content, found, rank, group)
    return None if found is None else [x.view(tensor.dtype).view(tensor.shape) for x in found]
