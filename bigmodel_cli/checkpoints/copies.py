"""A copy of tensors in the host's memory, from which a checkpoint is written while they change."""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Sequence
from dataclasses import replace

from bigmodel_cli.checkpoints.shards import Shard
from bigmodel_cli.console import quantity
from bigmodel_cli.device import is_cpu, is_cuda, synchronize
from bigmodel_cli.errors import ResourceError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.parted import is_part

ALIGNED = 64
"""Bytes of which each tensor's place is a multiple."""


class Copies:
    """Memory for the copy of one checkpoint's files, used again for the next one."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None  # (bytes,)
        self.places: list[tuple[str, str, int]] = []  # what is where in it, of the last copy

    def lacks(self, files: Sequence[Shard]) -> int:
        """Bytes that a copy of these files needs beside what is there from the last one."""
        sizes = (_room(t) for shard in files for t in shard.tensors.values())
        return max(0, sum(sizes) - (0 if self.memory is None else len(self.memory)))

    def take(self, files: Sequence[Shard], unchanging: frozenset[str]) -> list[Shard]:
        """The files with copies of their tensors, which are whole and on the CPU.

        Those of `unchanging` names are not copied where they are that already, nor twice. Raises
        `ResourceError` where there is no memory.
        """
        devices = {tensor.device for shard in files for tensor in shard.tensors.values()}
        self._grow(files, pinned=any(is_cuda(device) for device in devices))
        assert self.memory is not None
        before, self.places = self.places, []
        found, end, places = list[Shard](), 0, list[tuple[str, str, int]]()
        for shard in files:
            copied = {}
            for name, tensor in shard.tensors.items():
                still = name in unchanging and not is_part(tensor)
                whole = shard.comes(tensor).detach()
                if still and is_cpu(whole.device) and whole.is_contiguous():
                    copied[name] = whole
                    continue
                place = self.memory[end : end + whole.nbytes].view(whole.dtype).view(whole.shape)
                places.append((shard.name, name, end))
                if not still or before[: len(places)] != places:
                    place.copy_(whole, non_blocking=True)
                copied[name], end = place, end + _room(whole)
            found.append(replace(shard, tensors=copied))
        for device in devices:
            synchronize(device)
        self.places = places
        return found

    def _grow(self, files: Sequence[Shard], *, pinned: bool) -> None:
        """Have memory for these files."""
        lacking = self.lacks(files)
        if self.memory is None or lacking:
            size = lacking + (0 if self.memory is None else len(self.memory))
            self.memory, self.places = None, []  # gone before there is more
            self.memory = (
                _memory(size, pinned=pinned) if size else torch.empty(0, dtype=torch.uint8)
            )


def _room(tensor: Tensor) -> int:
    """Bytes of a tensor's place."""
    return -(-tensor.nbytes // ALIGNED) * ALIGNED


def _memory(size: int, *, pinned: bool) -> Tensor:
    """(size,) memory: pinned, to which a GPU copies by itself, or else of large pages where the
    system has them, since it takes the time of the copy once more to get small ones.
    """
    try:
        if pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        if sys.platform != "linux":
            return torch.empty(size, dtype=torch.uint8)
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTFORK):  # no worker of a loader needs it
            with contextlib.suppress(OSError):
                pages.madvise(advice)
        return torch.frombuffer(pages, dtype=torch.uint8)
    except (OSError, RuntimeError, MemoryError):
        raise ResourceError(
            f"train.save_async: there is no memory for a copy of {quantity(size, 'B')}; set it to"
            " auto or off"
        ) from None
