"""The safetensors container, checked before any tensor is made: a header that lies costs neither memory nor time."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor

MOST_HEADER = 100_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


def dump(tensors: dict[str, Tensor]) -> bytes:
    """The tensors as the content of a .safetensors file. Tensors that share storage are written once each."""
    from safetensors.torch import save

    return bytes(save({name: t.detach().contiguous().cpu().clone() for name, t in tensors.items()}))


def load(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file's content, after `check_header`. Raises `CheckpointError` naming the file."""
    check_header(content, path)
    from safetensors import SafetensorError
    from safetensors.torch import load as load_

    try:
        return dict(load_(content))
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; use another checkpoint") from None


def check_header(content: bytes, path: Path) -> dict[str, Any]:
    """The header of a .safetensors file, each entry checked. Raises `CheckpointError`.

    Checked: its length, unique names, known dtypes, and that the tensors' bytes follow one another without gap or overlap
    to the end of the file.
    """

    def broken(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: damaged: {what}; use another checkpoint")

    if len(content) < 8:
        raise broken(f"{len(content)} bytes, and a header alone has 8")
    length = int.from_bytes(content[:8], "little")
    if length > MOST_HEADER:
        raise broken(f"its header claims {length:,} bytes; at most {MOST_HEADER:,} are read")
    if length > len(content) - 8:
        raise broken(f"its header claims {length:,} bytes, and {len(content) - 8:,} follow")
    try:
        header = json.loads(content[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise broken(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise broken("its header is no table")
    end = 0
    entries = [(n, e) for n, e in header.items() if n != "__metadata__"]
    try:
        entries.sort(key=lambda entry: tuple(entry[1]["data_offsets"]))
        for name, entry in entries:
            first, last = entry["data_offsets"]
            size = math.prod(entry["shape"]) * BITS[entry["dtype"]] // 8
            if any(not isinstance(n, int) or n < 0 for n in (*entry["shape"], first, last)):
                raise broken(f"tensor {name!r} has an impossible shape or place")
            if first != end or last - first != size:
                raise broken(f"tensor {name!r} is said to be at {first} to {last}; {end} to {end + size} was expected")
            end = last
    except (KeyError, TypeError, ValueError) as error:
        raise broken(f"its header has a faulty entry ({type(error).__name__}: {error})") from None
    if end != len(content) - 8 - length:
        raise broken(f"its tensors take {end:,} bytes, and {len(content) - 8 - length:,} are there")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a name is given twice")
    return dict(pairs)


def describe(tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each tensor, for the manifest."""
    return {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in tensors.items()}


def same_as_described(tensors: dict[str, Tensor], described: dict[str, Any], path: Path) -> None:
    """Raise `CheckpointError` where the tensors are not those that the manifest describes."""
    found = describe(tensors)
    for name in sorted(found.keys() | described.keys()):
        if found.get(name) != described.get(name):
            raise CheckpointError(
                f"{path}: tensor {name!r}: manifest.json expects {described.get(name)}, found {found.get(name)}; "
                "use another checkpoint"
            )


def read_bounded(path: Path, expected: int) -> bytes:
    """The content of a file that must have exactly the expected size; a link is not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; use another checkpoint") from None
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size != expected:
            raise CheckpointError(
                f"{path}: {size:,} bytes, and manifest.json says {expected:,}: truncated or changed; use another checkpoint"
            )
        return file.read()
