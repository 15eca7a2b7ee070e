"""Weights in one file: .safetensors, or a pickle of torch.save, which runs no code here."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.checkpoints.files import check_size, opened
from bigmodel_cli.checkpoints.manifest import MOST_SIZE
from bigmodel_cli.convert.pickles import open_pickle
from bigmodel_cli.lazy import Tensor, torch

ANOTHER = "use another file"


def open_file(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by name, mapped where the layout lets that be, and what is to be said of it.

    torch.save's layout from before 2020 is read as a whole. Raises `CheckpointError`.
    """
    if path.suffix == ".safetensors":
        return _mapped(path), []
    with opened(path, MOST_SIZE) as file:
        size, older = os.fstat(file.fileno()).st_size, not zipfile.is_zipfile(file)
    check_size(path, size, MOST_SIZE, None)  # also against the machine's memory
    return open_pickle(path, path, older), [
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
