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


class Sum:
    """The sums over `samples` of tensors of these forms, in progress: of one bucket.

    This process gives `tensors`, and zeros for None, times `factor`.
    """

    def __init__(
        self, forms: Sequence[Tensor], tensors: Sequence[Tensor | None], factor: float = 1.0
    ) -> None:
        import torch.distributed as dist

        flat = forms[0].new_empty(sum(form.numel() for form in forms))
        parts = flat.split([form.numel() for form in forms])
        # each lies as its form does: an optimizer's kernels would copy it otherwise
        self.sums = [
            part.as_strided(form.shape, form.stride())
            for part, form in zip(parts, forms, strict=True)
        ]
        given = [(own, t) for own, t in zip(self.sums, tensors, strict=True) if t is not None]
        with torch.no_grad():
            if len(given) < len(forms):
                flat.zero_()
            if given:
                torch._foreach_copy_([own for own, _ in given], [t for _, t in given])
            if factor != 1.0:
                flat.mul_(factor)
        self.work: Any = dist.all_reduce(flat, group=samples_group(), async_op=True)

    def wait(self) -> list[Tensor]:
        """The sums, which are the same bits in all processes."""
        self.work.wait()
        return self.sums


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


def most(number: int) -> int:
    """The greatest of the numbers that each process gives; nobody waits for a GPU."""
    if world().alone:
        return number
    import torch.distributed as dist

    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def most_and_gathered(number: int, tensor: Tensor) -> tuple[int, list[Tensor]]:
    """`most` of the numbers of all processes, and the `gathered` tensors: in one exchange where a
    CPU has them. The number is one that fp32 has exactly.
    """
    if tensor.device.type != "cpu" or samples().size < world().size:
        return most(number), gathered(tensor)
    rows = gathered(torch.cat((tensor.new_full((1,), number), tensor.reshape(-1))))
    return max(int(row[0]) for row in rows), [row[1:].view(tensor.shape) for row in rows]


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
