"""The tensors in a folder's files: known by name, shape and dtype at once, read piece by piece."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.checkpoints.files import CHUNK, check_size, clipped, opened
from bigmodel_cli.checkpoints.manifest import MOST_SIZE
from bigmodel_cli.convert.folder import ANOTHER, CONFIG, has, located, read_json
from bigmodel_cli.convert.pickles import open_pickle
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor, torch

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MOST_FILES = 1_000


class Stored(ABC):
    """A tensor in a file; `described` is on the meta device."""

    described: Tensor
    place: tuple[Path, int]
    """The file, and where in it: reading in this order is fastest."""

    @abstractmethod
    def pieces(self, first: int, count: int) -> Iterator[tuple[int, Tensor]]:
        """These rows on the CPU, each piece with the number of its first; valid until the next."""

    def fill(self, target: Tensor, first: int) -> None:
        """Copy rows from `first` on into a contiguous CPU tensor of the same dtype."""
        for at, piece in self.pieces(first, len(target) if target.dim() else 1):
            if target.dim():
                target[at - first : at - first + len(piece)].copy_(piece)
            else:
                target.copy_(piece)


@dataclass(frozen=True)
class _InFile(Stored):
    """In a .safetensors file of `size` bytes, from byte `first` on."""

    path: Path
    first: int
    size: int
    described: Tensor

    @property
    def place(self) -> tuple[Path, int]:  # type: ignore[override]
        return self.path, self.first

    def pieces(self, first: int, count: int) -> Iterator[tuple[int, Tensor]]:
        width, shape = self._width(), self.described.shape[1:]
        some = max(1, CHUNK // max(width, 1))
        buffer = torch.empty(min(some, count) * width, dtype=torch.uint8)
        for at in range(first, first + count if width else 0, some):
            rows = min(some, first + count - at)
            part = buffer[: rows * width]
            self._read(part, at * width)
            found = part.view(self.described.dtype)
            yield at, found.view(rows, *shape) if self.described.dim() else found[0]

    def fill(self, target: Tensor, first: int) -> None:
        if target.numel():
            self._read(target.view(-1).view(torch.uint8), first * self._width())

    def _width(self) -> int:
        """Bytes of a row."""
        rows = len(self.described) if self.described.dim() else 1
        return self.described.nbytes // max(rows, 1)

    def _read(self, memory: Tensor, start: int) -> None:
        """Read bytes of the tensor, from its byte `start` on."""
        with opened(self.path, MOST_SIZE) as file:
            if os.fstat(file.fileno()).st_size != self.size:
                raise CheckpointError(f"{self.path}: changed while it was read; {ANOTHER}")
            file.seek(self.first + start)
            into = memory.numpy().data
            if file.readinto(into) != len(into):
                raise CheckpointError(f"{self.path}: truncated while it was read; {ANOTHER}")


@dataclass(frozen=True)
class _Unpickled(Stored):
    """A tensor that torch.load gave, mapped from its file."""

    tensor: Tensor
    place: tuple[Path, int]
    described: Tensor

    def pieces(self, first: int, count: int) -> Iterator[tuple[int, Tensor]]:
        yield first, self.tensor[first : first + count] if self.tensor.dim() else self.tensor


class FolderTensors(Mapping[str, Tensor]):
    """The tensors of a folder by name, on the meta device; `stored` reads them."""

    def __init__(self, stored: dict[str, Stored], notes: list[str]) -> None:
        self.stored = stored
        self.notes = notes  # what is to be said when they are used

    def dtype(self) -> str:
        """The dtype of most numbers, such as bfloat16."""
        counts: Counter[str] = Counter()
        for tensor in self.values():
            counts[safe.dtype_name(tensor)] += tensor.numel()
        return counts.most_common(1)[0][0] if counts else ""

    def read(self, name: str) -> Tensor:
        """A whole tensor on the CPU."""
        tensor = torch.empty_like(self[name], device="cpu")
        self.stored[name].fill(tensor, 0)
        return tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].described

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def open_file(path: Path) -> FolderTensors:
    """The tensors of one .safetensors file, its header checked. Raises `CheckpointError`."""
    return FolderTensors(_one_file(path, path), [])


def open_tensors(folder: Path) -> FolderTensors:
    """The tensors of the folder's files, headers checked. Raises `CheckpointError`."""
    if has(folder, INDEX):
        listed = _index(folder, INDEX, ".safetensors")
    elif has(folder, WEIGHTS):
        listed = {WEIGHTS: None}
    else:
        return _of_pickles(folder)
    stored: dict[str, Stored] = {}
    for name, expected in listed.items():
        found = _one_file(located(folder, name), folder / name)
        _check_index(folder / name, found, expected, INDEX)
        stored |= found
    total = sum(tensor.described.nbytes for tensor in stored.values())
    check_size(folder, total, MOST_SIZE, None)  # also against the machine's memory
    return FolderTensors(stored, [])


def _of_pickles(folder: Path) -> FolderTensors:
    if has(folder, PICKLE_INDEX):
        listed = _index(folder, PICKLE_INDEX, ".bin")
    elif has(folder, PICKLE):
        listed = {PICKLE: None}
    else:
        raise CheckpointError(_without_weights(folder))
    stored: dict[str, Stored] = {}
    for name, expected in listed.items():
        path = located(folder, name)
        found: dict[str, Stored] = {
            key: _Unpickled(tensor, (path, number), tensor.to("meta"))
            for number, (key, tensor) in enumerate(open_pickle(path, folder / name).items())
        }
        _check_index(folder / name, found, expected, PICKLE_INDEX)
        stored |= found
    names = ", ".join(list(listed)[:3])
    note = (
        f"{folder}: {names}: a pickle, read by torch.load(weights_only=True), which runs no code;"
        " safetensors is preferred where there is a choice"
    )
    return FolderTensors(stored, [note])


def _check_index(
    path: Path, found: Mapping[str, Stored], expected: set[str] | None, index: str
) -> None:
    if expected is not None and found.keys() != expected:
        odd = min(found.keys() ^ expected)
        raise CheckpointError(f"{path}: {clipped(odd)!r} is not where {index} says; {ANOTHER}")


def _index(folder: Path, index: str, ending: str) -> dict[str, set[str] | None]:
    """Each file's tensors. Raises `CheckpointError` for a name that is not of a file beside it."""
    path = folder / index
    mapped = read_json(folder, index).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise CheckpointError(f"{path}: damaged (no weight_map); {ANOTHER}")
    files: dict[str, set[str] | None] = {}
    for tensor, name in mapped.items():
        if not isinstance(name, str) or os.path.basename(name) != name or "\0" in name:
            raise CheckpointError(
                f"{path}: {clipped(repr(name))} is not the name of a file beside it; {ANOTHER}"
            )
        if not name.endswith(ending):
            raise CheckpointError(f"{path}: {clipped(name)!r} does not end in {ending}; {ANOTHER}")
        known = files.setdefault(name, set())
        assert known is not None
        known.add(tensor)
    if len(files) > MOST_FILES:
        raise CheckpointError(f"{path}: {len(files):,} files; at most {MOST_FILES:,} are read")
    for name in files:
        if not has(folder, name):
            raise CheckpointError(f"{folder / name}: missing; {index} names it; {ANOTHER}")
    return files


def _one_file(path: Path, named: Path) -> dict[str, Stored]:
    with opened(path, MOST_SIZE) as file:
        size = os.fstat(file.fileno()).st_size
        start, tensors = safe.read_header(file, named, size)
    found: dict[str, Stored] = {}
    first = len(start)
    for name, described in tensors.items():
        found[name] = _InFile(path, first, size, described)
        first += described.nbytes
    return found


def _without_weights(folder: Path) -> str:
    names = sorted(os.listdir(folder))
    others = [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))]
    there = f"; {', '.join(map(clipped, others[:3]))} is not read" if others else ""
    return f"{folder}: {CONFIG} is there, and no {WEIGHTS}{there}; {ANOTHER}"
