"""Sums of tensors over processes, and the tensors of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bigmodel_cli.distributed.neighbours import Neighbours
from bigmodel_cli.distributed.who import samples, samples_group, world
from bigmodel_cli.lazy import Tensor, torch

BUCKET = 8 << 20
"""Bytes of tensors that are sent at once."""
Fold = Callable[[list[Tensor]], Tensor]
"""Makes one tensor of those of all processes, by rank."""


def sum_(
    tensors: Sequence[Tensor], fold: Fold | None = None, among: Neighbours | None = None
) -> None:
    """Replace each tensor by its sum over `samples`, or `among` these: the same bits in all.

    With `fold`, which is to work element by element, by what it makes of the tensors of each.
    """
    if samples().alone if among is None else among.size == 1:
        return
    import torch.distributed as dist

    group = samples_group() if among is None else among.group
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        if fold is None:
            dist.all_reduce(flat, group=group)
        else:
            flat = fold(gathered(flat))
        parts = flat.split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(
            list(bucket), [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)]
        )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
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
