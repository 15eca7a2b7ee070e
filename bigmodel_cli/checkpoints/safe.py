"""The safetensors container, checked before any tensor is made: a header that lies costs neither memory nor time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.files import ANOTHER, MOST_JSON, MOST_VALUES, clipped, is_whole, parse_json
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor

MOST_BYTES = 2**53
"""Of a tensor; also its numbers."""
MOST_AXES = 64
MOST_NAME = 1000
"""Characters in a tensor's name."""
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
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged: {clipped(str(error))}; {ANOTHER}") from None


def check_header(content: bytes, path: Path) -> dict[str, Any]:
    """The header of a .safetensors file, each entry checked. Raises `CheckpointError`.

    Checked, types before arithmetic: its length, unique names, known dtypes, shapes of whole numbers, and that the tensors' bytes
    follow one another without gap or overlap to the end of the file.
    """
    try:
        return _header(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {clipped(str(error), 300)}; {ANOTHER}") from None


def _header(content: bytes) -> dict[str, Any]:
    """The header. Raises `ValueError`."""
    if len(content) < 8:
        raise ValueError(f"{len(content)} bytes, and a header alone has 8")
    length, rest = int.from_bytes(content[:8], "little"), len(content) - 8
    if length > MOST_JSON:
        raise ValueError(f"its header claims {length:,} bytes; at most {MOST_JSON:,} are read")
    if length > rest:
        raise ValueError(f"its header claims {length:,} bytes, and {rest:,} follow")
    try:
        header = parse_json(content[8 : 8 + length])
    except ValueError as error:
        raise ValueError(f"its header is not JSON ({clipped(str(error))})") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    notes = header.get("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError("its header has a faulty entry (__metadata__)")
    places = [(*_place(name, entry), name) for name, entry in header.items() if name != "__metadata__"]
    end = 0
    for first, last, size, name in sorted(places):
        if first != end or last - first != size:
            raise ValueError(
                f"tensor {clipped(name)!r} is said to be at {first} to {last}; {end} to {end + size} was expected"
            )
        end = last
    if end != rest - length:
        raise ValueError(f"its tensors take {end:,} bytes, and {rest - length:,} are there")
    return header


def _place(name: str, entry: Any) -> tuple[int, int, int]:
    """(first byte, the one after the last, bytes that its shape takes) of a tensor. Raises `ValueError`."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"} or len(name) > MOST_NAME:
        raise ValueError(f"its header has a faulty entry ({clipped(name)!r})")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"its header has a faulty entry ({clipped(name)!r}: dtype {clipped(repr(dtype), 40)})")
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and len(shape) <= MOST_AXES
    if not lists or not all(is_whole(n, MOST_BYTES) for n in (*shape, *offsets)):
        raise ValueError(f"tensor {clipped(name)!r} has an impossible shape or place")
    if math.prod(max(n, 1) for n in shape) > MOST_BYTES:
        raise ValueError(f"tensor {clipped(name)!r} has an impossible shape or place")
    return offsets[0], offsets[1], math.prod(shape) * BITS[dtype] // 8


def describe(tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each tensor, for the manifest."""
    return {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in tensors.items()}


def can_list(*files: Sequence[int]) -> bool:
    """Whether the manifest and the headers of files of tensors of so many axes have no more values than are read again."""
    # An entry of a header has 11 commas, colons and brackets, one of the manifest 7, and a comma for each axis but the first.
    headers = [sum(11 + max(0, axes - 1) for axes in file) for file in files]
    manifest = sum(7 + max(0, axes - 1) for file in files for axes in file)
    return max(*headers, manifest) + 1000 < MOST_VALUES


def same_as_described(tensors: dict[str, Tensor], described: dict[str, Any], path: Path) -> None:
    """Raise `CheckpointError` where the tensors are not those that the manifest describes."""
    found = describe(tensors)
    for name in sorted(found.keys() | described.keys()):
        if found.get(name) != described.get(name):
            expected = clipped(str(described.get(name)))
            raise CheckpointError(
                f"{path}: tensor {clipped(name)!r}: manifest.json expects {expected}, found {found.get(name)}; {ANOTHER}"
            )
