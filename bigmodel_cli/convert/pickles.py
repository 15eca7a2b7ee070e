"""Weights in a pickle of torch.save, read by its `weights_only` unpickler, which runs no code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

from bigmodel_cli.checkpoints.files import MOST_JSON, clipped, opened
from bigmodel_cli.checkpoints.manifest import MOST_SIZE
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor, torch

SAFE = "convert it to safetensors where it came from"


def open_pickle(path: Path, named: Path, older: bool = False) -> dict[str, Tensor]:
    """The tensors by name, mapped from the file. Raises `CheckpointError`.

    Refused: what torch.save does not write (compressed entries, which might be larger than the
    file), the layout before 2020, which cannot be mapped, unless `older`, and anything but tensors.
    """
    try:
        if not older:
            _check_archive(path)
        values = torch.load(path, map_location="cpu", mmap=not older, weights_only=True)
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, TypeError, KeyError,
        AttributeError, IndexError, EOFError, AssertionError, OverflowError, NotImplementedError,
        OSError, UnicodeDecodeError, ImportError,
        MemoryError,
    ) as error:  # fmt: skip
        reason = clipped(str(error).partition("\n")[0], 120)
        raise CheckpointError(f"{named}: a pickle that is refused ({reason}); {SAFE}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{named}: holds a {type(values).__name__}, not tensors; {SAFE}")
    found = {}
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not _is_plain(value):
            raise CheckpointError(
                f"{named}: {clipped(repr(name), 80)} is not a tensor of numbers in the file; {SAFE}"
            )
        found[name] = value.detach()
    return found


def _check_archive(path: Path) -> None:
    """Raise `ValueError` unless every entry takes in memory what it takes in the file."""
    with opened(path, MOST_SIZE) as file, zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise ValueError(f"{clipped(entry.filename, 60)} is compressed")
            if entry.filename.endswith(".pkl") and entry.file_size > MOST_JSON:
                raise ValueError(f"{entry.file_size:,} bytes beside the tensors")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has its numbers, each once, in its storage."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()
