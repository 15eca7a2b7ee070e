"""Tensors that are divided among processes come together, each in the process that writes it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from bigmodel_cli.checkpoints.shards import Shard
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.parted import is_part, whole_at


class Gathering:
    """All files' divided tensors in one order, in which every process gives its parts of them.

    The processes' own tensors alternate in it, so that all of them have something to write.
    """

    def __init__(self, files: Sequence[Shard], writers: Sequence[int]) -> None:
        lanes: dict[int, list[tuple[int, Tensor]]] = {}
        for shard, writer in zip(files, writers, strict=True):
            own = lanes.setdefault(writer, [])
            own += [(writer, tensor) for tensor in shard.tensors.values() if is_part(tensor)]
        turns = zip_longest(*(lanes[writer] for writer in sorted(lanes)))
        self.order = iter([entry for turn in turns for entry in turn if entry is not None])

    def take(self, tensor: Tensor) -> Tensor:
        """All of a tensor that this process writes; the others' before it are given to them."""
        if not is_part(tensor):
            return tensor
        for writer, part in self.order:
            found = whole_at(part, writer)
            if part is tensor:
                assert found is not None
                return found
        raise AssertionError("the tensor is none of this process")

    def finish(self) -> None:
        """Give the others the rest of theirs."""
        for writer, part in self.order:
            whole_at(part, writer)
