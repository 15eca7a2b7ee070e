"""Weights in one file: .safetensors, or a pickle of torch.save, which runs no code here."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.checkpoints.files import check_size, clipped, opened
from bigmodel_cli.checkpoints.manifest import MOST_SIZE
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor, torch

ANOTHER = "use another file"
SAFE = "save its state_dict() as safetensors where it came from"


def open_file(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by name, mapped where the layout lets that be, and what is to be said of it.

    Raises `CheckpointError`.
    """
    if path.suffix == ".safetensors":
        return _mapped(path), []
    return _unpickled(path), [
        f"{path}: a pickle, read by torch.load(weights_only=True), which runs no code"
    ]


def _mapped(path: Path) -> dict[str, Tensor]:
    with opened(path, MOST_SIZE) as file:
        size = os.fstat(file.fileno()).st_size
        start, described = safe.read_header(file, path, size)
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    found, first = {}, len(start)
    for name, tensor in described.items():
        own = content[first : first + tensor.nbytes]
        if first % tensor.element_size():  # cannot be viewed as numbers of this size
            own = own.clone()
        found[name] = own.view(tensor.dtype).view(tensor.shape)
        first += tensor.nbytes
    return found


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict. Refused: compressed entries, and anything but tensors."""
    try:
        values = _load(path)
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, TypeError, KeyError,
        AttributeError, IndexError, EOFError, AssertionError, OverflowError, NotImplementedError,
        OSError, ImportError, MemoryError,
    ) as error:  # fmt: skip
        reason = clipped(str(error).partition("\n")[0], 120)
        raise CheckpointError(f"{path}: a pickle that is refused ({reason}); {SAFE}") from None
    if not isinstance(values, dict) or not values:
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, not tensors; {SAFE}")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not _plain(value):
            raise CheckpointError(
                f"{path}: {clipped(repr(name), 80)} is not a tensor of numbers in the file; {SAFE}"
            )
    return {name: tensor.detach() for name, tensor in values.items()}


def _load(path: Path) -> object:
    """A zip of uncompressed entries is mapped; the layout from before 2020 is read as a whole."""
    with opened(path, MOST_SIZE) as file:
        size = os.fstat(file.fileno()).st_size
        zipped = zipfile.is_zipfile(file)
        if zipped:
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                        raise ValueError(f"{clipped(entry.filename, 60)} is compressed")
    if not zipped:
        check_size(path, size, MOST_SIZE, None)  # also against the machine's memory
    return torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor has its numbers, each once, in its storage."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()
