"""Tensors in a checkpoint's files: known by shape and dtype at once, read one by one on demand.

Bytes are hashed in this process's memory, where they are used: a mapped file, or one that is read
again without hashing, might change after it was verified.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.checkpoints.contents import MANIFEST, TIED
from bigmodel_cli.checkpoints.files import ANOTHER, CHUNK, check_size, clipped, opened
from bigmodel_cli.checkpoints.manifest import MOST_SIZE, Manifest
from bigmodel_cli.checkpoints.places import Complete, give, is_same, refused
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parted import is_part


@dataclass(frozen=True)
class File:
    """A .safetensors file: size and SHA-256 by the manifest, bytes before the tensors, tensors."""

    path: Path
    size: int
    sha256: str
    start: bytes
    tensors: dict[str, Tensor]

    def read(self, place: Callable[[str], Tensor | None]) -> Iterator[tuple[str, Tensor]]:
        """Read the tensors, each into the contiguous CPU tensor that `place` gives (None: skip).

        Raises `CheckpointError`, at the end at the latest, where the file is not the manifest's.
        """
        digest = hashlib.sha256(self.start)
        passed = memoryview(bytearray(CHUNK))
        with opened(self.path, self.size, self.size) as file:
            file.seek(len(self.start))
            for name, described in self.tensors.items():
                tensor = place(name)
                if tensor is not None:
                    self._fill(file, safe.tensor_bytes(tensor), digest)
                    yield name, tensor
                    continue
                for first in range(0, described.nbytes, CHUNK):
                    self._fill(file, passed[: described.nbytes - first], digest)
        _check_digest(self.path, digest, self.sha256)

    def glance(self, name: str) -> Tensor:
        """A tensor as the file has it now, not verified."""
        before = list(self.tensors)[: list(self.tensors).index(name)]
        tensor = torch.empty_like(self.tensors[name], device="cpu")
        with opened(self.path, self.size, self.size) as file:
            file.seek(len(self.start) + sum(self.tensors[n].nbytes for n in before))
            self._fill(file, safe.tensor_bytes(tensor), hashlib.sha256())
        return tensor

    def _fill(self, file: BufferedReader, memory: memoryview, digest: Any) -> None:
        for first in range(0, len(memory), CHUNK):
            part = memory[first : first + CHUNK]
            if file.readinto(part) != len(part):
                raise CheckpointError(f"{self.path}: truncated while it was read; {ANOTHER}")
            digest.update(part)


class Tensors(Mapping[str, Tensor]):
    """Tensors in files, by name; on the meta device until they are read.

    Each way of reading raises `CheckpointError` where a file is damaged or has changed.
    """

    described: Mapping[str, Tensor]
    """Shape and dtype of each, on the meta device."""
    tied: Mapping[str, str] = {}
    """Names of a tensor that is stored under another name -> that name."""
    spare: tuple[str, ...] = ()
    """Prefixes of tensors for which a model may have no place; it keeps them with a new head."""

    def __getitem__(self, name: str) -> Tensor:
        return self.described[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)

    def hold_as_stored(self, model: Module) -> None:
        """Change a model's weights to the dtypes of the files, where `self` is to be in others.

        Their content is undefined then.
        """

    taken: Mapping[str, Sequence[int]] = {}
    """Stack -> the numbers of the layers that these are of, where they are not of all."""

    @abstractmethod
    def copy_to(self, targets: Mapping[str, Tensor], complete: Complete = refused) -> None:
        """Copy into the targets, by name; after an error their content is undefined.

        One on the meta device is made when it is read, given to `complete`, and not kept.
        """

    @abstractmethod
    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor on the CPU."""

    @abstractmethod
    def glance(self, name: str) -> Tensor:
        """A tensor as the files have it now, not verified: only to refuse something early."""


class ChangedTensors(Tensors):
    """Tensors of which some are changed, as `changes` says, when they are read."""

    def __init__(self, tensors: Tensors, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        self.tensors, self.changes = tensors, changes
        self.tied, self.spare = tensors.tied, tensors.spare
        self.described = {
            name: changes[name](tensor) if name in changes else tensor
            for name, tensor in tensors.items()
        }

    def copy_to(self, targets: Mapping[str, Tensor], complete: Complete = refused) -> None:
        whole = {
            name: torch.empty_like(self.tensors[name], device="cpu")
            for name in self.changes.keys() & targets.keys()
        }
        self.tensors.copy_to({**targets, **whole}, complete)
        with torch.no_grad():
            for name, tensor in whole.items():
                give(name, self.changes[name](tensor), targets[name], complete)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.tensors.stream():
            yield name, self.changes[name](tensor) if name in self.changes else tensor

    def glance(self, name: str) -> Tensor:
        tensor = self.tensors.glance(name)
        return self.changes[name](tensor) if name in self.changes else tensor


class StoredTensors(Tensors):
    """The tensors of one kind in a checkpoint of ours, checked against its manifest.

    Each way of reading raises `CheckpointError` where a file is not the manifest's.
    """

    def __init__(self, files: list[File], tied: Mapping[str, str]) -> None:
        self.files = files
        self.tied = tied  # name -> the one under which the tensor is stored
        # Stored name -> all of its names.
        self.names = {name: [name] for file in files for name in file.tensors}
        for name, stored in tied.items():
            self.names[stored].append(name)
        self.described = {
            name: t
            for file in files
            for stored, t in file.tensors.items()
            for name in self.names[stored]
        }

    def verify(self) -> None:
        """Read and verify every byte."""
        self.copy_to({})

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor on the CPU; they are verified at the end of the iteration.

        Tied names come with the same tensor.
        """
        for file in self.files:
            for stored, tensor in file.read(
                lambda name: torch.empty_like(self.described[name], device="cpu")
            ):
                yield from ((name, tensor) for name in self.names[stored])

    def load(self) -> dict[str, Tensor]:
        """All tensors, verified, on the CPU."""
        return dict(self.stream())

    def copy_to(self, targets: Mapping[str, Tensor], complete: Complete = refused) -> None:
        """Copy into the targets, by name; after an error their content is undefined.

        What has no target is verified all the same.
        """

        def place(stored: str) -> Tensor | None:
            wanted = [targets[name] for name in self.names[stored] if name in targets]
            fitting = [target for target in wanted if _takes_bytes(target, self.described[stored])]
            if wanted and not fitting:
                return torch.empty_like(self.described[stored], device="cpu")
            return fitting[0] if fitting else None

        with torch.no_grad():
            for file in self.files:
                for stored, tensor in file.read(place):
                    for name in self.names[stored]:
                        if name in targets and not is_same(targets[name], tensor):
                            give(name, tensor, targets[name], complete)
                    del tensor  # before the next is read

    def glance(self, name: str) -> Tensor:
        """A tensor as the files have it now, not verified: only to refuse something early."""
        return next(file for file in self.files if name in file.tensors).glance(name)


def _takes_bytes(target: Tensor, described: Tensor) -> bool:
    """Whether a tensor's memory layout is the file's, so that no buffer is needed."""
    same = (target.shape, target.dtype) == (described.shape, described.dtype)
    return same and target.device.type == "cpu" and target.is_contiguous() and not is_part(target)


def open_tensors(path: Path, kind: str, manifest: Manifest) -> StoredTensors:
    """The tensors in a checkpoint's files of a kind ('model.safetensors'), checked but for data.

    Raises `CheckpointError`, and `ResourceError` where they are larger than the machine's memory.
    """
    names = manifest.shards[kind]
    files: list[File] = []
    tied: dict[str, str] = {}
    for name in names:
        listed = manifest.tensors.get(name, {})
        file, more = _open(path / name, *manifest.files[name], listed)
        twice = (file.tensors.keys() | more) & (
            tied.keys() | {n for other in files for n in other.tensors}
        )
        if twice:
            raise CheckpointError(
                f"{path / name}: tensor {clipped(min(twice))!r} is in two files; {ANOTHER}"
            )
        files.append(file)
        tied |= more
    check_size(path, sum(file.size for file in files), MOST_SIZE, None)
    return StoredTensors(files, tied)


def _open(
    path: Path, size: int, sha256: str, listed: dict[str, Any]
) -> tuple[File, dict[str, str]]:
    """A file checked against the manifest, and the names tied to its tensors."""
    with opened(path, size, size) as file:
        try:
            start, tensors = safe.read_header(file, path, size)
            tied = {
                n: e[TIED] for n, e in listed.items() if isinstance(e, dict) and e.keys() == {TIED}
            }
            for name, stored in tied.items():
                if name in tensors or not isinstance(stored, str) or stored not in tensors:
                    raise CheckpointError(
                        f"{path}: tensor {clipped(name)!r} is tied to none of it; {ANOTHER}"
                    )
            safe.same_as_described(
                tensors, {n: e for n, e in listed.items() if n not in tied}, path
            )
        except CheckpointError:
            file.seek(0)
            digest = hashlib.sha256()
            while part := file.read(CHUNK):
                digest.update(part)
            # A changed file is reported as such, whatever else is wrong.
            _check_digest(path, digest, sha256)
            raise
    return File(path, size, sha256, start, tensors), tied


def _check_digest(path: Path, digest: Any, sha256: str) -> None:
    if digest.hexdigest() != sha256:
        raise CheckpointError(
            f"{path}: its SHA-256 is not the one in {MANIFEST}: damaged or changed; {ANOTHER}"
        )


def glance(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of a checkpoint, not verified (see `StoredTensors.glance`), or one in memory."""
    return tensors.glance(name) if isinstance(tensors, Tensors) else tensors[name]


def copy_tensors(
    tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], complete: Complete = refused
) -> None:
    """Copy tensors, of a checkpoint or in memory, into the targets; all of those must exist.

    For those on the meta device see `Tensors.copy_to`.
    """
    if isinstance(tensors, Tensors):
        tensors.copy_to(targets, complete)
        return
    with torch.no_grad():
        for name, target in targets.items():
            give(name, tensors[name], target, complete)
