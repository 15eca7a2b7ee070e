"""Writing tensors to .safetensors files one by one: files of bounded size, tied tensors once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.checkpoints.contents import TIED
from bigmodel_cli.checkpoints.files import CHUNK
from bigmodel_cli.checkpoints.manifest import shard_names
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.parted import key, whole

SHARD_SIZE = 500_000_000
"""Most bytes of tensors in a file, unless there were too many files; a larger tensor has a file of
its own. Which file a tensor is in depends on the tensors alone, not on who writes it."""
MOST_SHARDS = 200
"""Files of a kind that tensors would fill: no more than twice as many are written."""


@dataclass(frozen=True)
class Shard:
    """A .safetensors file to write; `tied` are other names of its tensors.

    Iterating over it gives the content in pieces. A tensor that is not on the CPU is copied when
    its turn comes, and one that is divided among processes `comes` together then.
    """

    name: str
    tensors: dict[str, Tensor]
    tied: dict[str, str]
    comes: Callable[[Tensor], Tensor] = whole

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield safe.header(self.tensors)
        for tensor in self.tensors.values():
            content = safe.tensor_bytes(self.comes(tensor).detach().cpu().contiguous())
            yield from (content[first : first + CHUNK] for first in range(0, len(content), CHUNK))

    def size(self) -> int:
        """Bytes of the file."""
        return len(safe.header(self.tensors)) + sum(
            tensor.nbytes for tensor in self.tensors.values()
        )

    def described(self) -> dict[str, dict[str, Any]]:
        """The manifest's entries of its tensors."""
        return {
            **safe.describe(self.tensors),
            **{name: {TIED: first} for name, first in self.tied.items()},
        }


def shards(file: str, tensors: Mapping[str, Tensor]) -> list[Shard]:
    """The files for these tensors: `file` itself, or numbered ones where there is more than one."""
    firsts: dict[Any, str] = {}  # memory -> the first name of its tensor
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name in safe.file_order(tensors):
        tensor = tensors[name]
        first = firsts.setdefault(key(tensor), name) if tensor.numel() else name
        if first != name:
            tied[name] = first
        else:
            stored[name] = tensor
    groups: list[dict[str, Tensor]] = [{}]
    size = max(SHARD_SIZE, sum(tensor.nbytes for tensor in stored.values()) // MOST_SHARDS)
    room = size
    for name, tensor in stored.items():
        if tensor.nbytes > room and groups[-1]:
            groups.append({})
            room = size
        groups[-1][name] = tensor
        room -= tensor.nbytes
    return [
        Shard(name, group, {other: first for other, first in tied.items() if first in group})
        for name, group in zip(shard_names(file, len(groups)), groups, strict=True)
    ]


def writers(files: Sequence[Shard], count: int) -> list[int]:
    """Which of `count` processes writes each file, so that all write about as many bytes."""
    found, written = [0] * len(files), [0] * count
    sizes = [shard.size() for shard in files]
    for number in sorted(range(len(files)), key=lambda n: -sizes[n]):
        found[number] = written.index(min(written))
        written[found[number]] += sizes[number]
    return found
