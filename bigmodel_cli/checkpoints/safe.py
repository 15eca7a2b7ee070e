"""The safetensors container, checked before any tensor is made: a forged header costs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from bigmodel_cli.checkpoints.files import (
    ANOTHER,
    MOST_JSON,
    MOST_VALUES,
    clipped,
    is_whole,
    parse_json,
)
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor, torch

MOST_BYTES = 2**53
"""Most bytes of a tensor, and most numbers."""
MOST_AXES = 64
MOST_NAME = 1000
"""Characters in a tensor's name."""
DTYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1), "I16": ("int16", 2), "U16": ("uint16", 2),
    "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I32": ("int32", 4), "U32": ("uint32", 4),
    "F32": ("float32", 4), "C64": ("complex64", 8), "F64": ("float64", 8), "I64": ("int64", 8),
    "U64": ("uint64", 8),
}  # fmt: skip
"""A header's dtype -> (PyTorch's name, bytes), in the order in which safetensors sorts them."""
_NAMES = {name: (rank, code) for rank, (code, (name, _)) in enumerate(DTYPES.items())}


def file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names in the safetensors library's order: widest dtype first, then by name."""
    return sorted(tensors, key=lambda name: (-_NAMES[dtype_name(tensors[name])][0], name))


def header(tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> bytes:
    """The header of a file of tensors in this order, byte for byte as the safetensors library's.

    `notes` are its free texts.
    """
    entries: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
    end = 0
    for name, tensor in tensors.items():
        first, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[dtype_name(tensor)][1],
            "shape": list(tensor.shape),
            "data_offsets": [first, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def dtype_name(tensor: Tensor) -> str:
    """The name of a tensor's dtype, such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def read_header(file: BinaryIO, path: Path, size: int) -> tuple[bytes, dict[str, Tensor]]:
    """A .safetensors file's bytes before the tensors, and the tensors in order on the meta device.

    Each entry is checked. Raises `CheckpointError` naming the file.
    """
    start = file.read(8)
    start += file.read(min(int.from_bytes(start, "little"), MOST_JSON))
    entries = check_header(start, path, size)
    names = sorted(
        (n for n in entries if n != "__metadata__"), key=lambda n: (entries[n]["data_offsets"], n)
    )
    return start, {
        n: torch.empty(
            entries[n]["shape"], dtype=getattr(torch, DTYPES[entries[n]["dtype"]][0]), device="meta"
        )
        for n in names
    }


def check_header(start: bytes, path: Path, size: int) -> dict[str, Any]:
    """The header that a .safetensors file of `size` bytes begins with, each entry checked.

    Raises `CheckpointError`.

    Checked, types before arithmetic: its length, unique names, known dtypes, shapes of integers,
    and that the tensors' bytes cover the rest of the file without gap or overlap.
    """
    try:
        return _header(start, size)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {clipped(str(error), 300)}; {ANOTHER}") from None


def _header(start: bytes, size: int) -> dict[str, Any]:
    """The header. Raises `ValueError`."""
    if len(start) < 8:
        raise ValueError(f"{size} bytes, and a header alone has 8")
    length, rest = int.from_bytes(start[:8], "little"), size - 8
    if length > MOST_JSON:
        raise ValueError(f"its header claims {length:,} bytes; at most {MOST_JSON:,} are read")
    if length > rest:
        raise ValueError(f"its header claims {length:,} bytes, and {rest:,} follow")
    try:
        header = parse_json(start[8 : 8 + length])
    except ValueError as error:
        raise ValueError(f"its header is not JSON ({clipped(str(error))})") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    notes = header.get("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError("its header has a faulty entry (__metadata__)")
    places = [
        (*_place(name, entry), name) for name, entry in header.items() if name != "__metadata__"
    ]
    end = 0
    for first, last, size, name in sorted(places):
        if first != end or last - first != size:
            raise ValueError(
                f"tensor {clipped(name)!r} is said to be at {first} to {last}; {end} to"
                f" {end + size} was expected"
            )
        end = last
    if end != rest - length:
        raise ValueError(f"its tensors take {end:,} bytes, and {rest - length:,} are there")
    return header


def _place(name: str, entry: Any) -> tuple[int, int, int]:
    """(first byte, end, bytes of the shape) of a tensor.

    Raises `ValueError`.
    """
    if (
        not isinstance(entry, dict)
        or entry.keys() != {"dtype", "shape", "data_offsets"}
        or len(name) > MOST_NAME
    ):
        raise ValueError(f"its header has a faulty entry ({clipped(name)!r})")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"its header has a faulty entry ({clipped(name)!r}: dtype {clipped(repr(dtype), 40)})"
        )
    lists = (
        isinstance(shape, list)
        and isinstance(offsets, list)
        and len(offsets) == 2
        and len(shape) <= MOST_AXES
    )
    whole = lists and all(is_whole(n, MOST_BYTES) for n in (*shape, *offsets))
    if not whole or math.prod(max(n, 1) for n in shape) > MOST_BYTES:
        raise ValueError(f"tensor {clipped(name)!r} has an impossible shape or place")
    return offsets[0], offsets[1], math.prod(shape) * DTYPES[dtype][1]


def describe(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each tensor, for the manifest."""
    return {n: {"shape": list(t.shape), "dtype": dtype_name(t)} for n, t in tensors.items()}


def can_list(*files: Sequence[int]) -> bool:
    """Whether the manifest and headers of files with these numbers of axes are within limits."""
    # An entry of a header has 11 commas, colons and brackets, one of the manifest 7, and a comma
    # for each axis but the first.
    headers = [sum(11 + max(0, axes - 1) for axes in file) for file in files]
    manifest = sum(7 + max(0, axes - 1) for file in files for axes in file)
    return max(*headers, manifest) + 1000 < MOST_VALUES


def same_as_described(tensors: Mapping[str, Tensor], described: dict[str, Any], path: Path) -> None:
    """Raise `CheckpointError` where the tensors are not those that the manifest describes."""
    found = describe(tensors)
    for name in sorted(found.keys() | described.keys()):
        if found.get(name) != described.get(name):
            expected = clipped(str(described.get(name)))
            raise CheckpointError(
                f"{path}: tensor {clipped(name)!r}: manifest.json expects {expected}, found"
                f" {found.get(name)}; {ANOTHER}"
            )
