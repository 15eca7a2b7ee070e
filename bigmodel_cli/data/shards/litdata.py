"""Chunks of litdata: index.json beside files of samples, each the sizes of its leaves (uint32) and
their bytes; or of tokens alone, one after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.data.shards.raw_images import as_png
from bigmodel_cli.data.shards.records import (
    Fields,
    Form,
    OffsetRecords,
    Records,
    Value,
    array_of,
    cannot_read,
    is_among,
    text_of,
)
from bigmodel_cli.errors import DataError

TORCH = {0: "<f4", 1: "<f4", 2: "<f8", 3: "<f8", 8: "<f2", 9: "<f2", 11: "u1", 12: "i1"}
TORCH |= {13: "<i2", 14: "<i2", 15: "<i4", 16: "<i4", 17: "<i8", 18: "<i8", 19: "?", 20: "<u2"}
"""Types of a tensor's numbers by litdata's numbers for them."""
NUMPY = {0: "i1", 1: "<i2", 2: "<i4", 3: "<i8", 4: "u1", 5: "<u2", 6: "<u4", 7: "<u8"}
NUMPY |= {8: "<f2", 9: "<f4", 10: "<f8"}
"""The same of an array; what further numbers stand for depends on the release that wrote them."""
IMAGES = {"jpeg", "bytes", "file", "image"}
SCALARS = {"int": "<i8", "float": "<f8", "integer": "<i8"}
MOST_AXES = 32


def names_of(spec: Any, count: int, where: str) -> tuple[str, ...]:
    """The names of a sample's leaves, as the tree that the index describes has them: a key, nested
    ones as a.b, places of lists as numbers.
    """
    try:
        tree = json.loads(spec)[1] if isinstance(spec, str) else None
        found = tuple(_leaves(tree, ""))
    except (ValueError, LookupError, TypeError, RecursionError):
        found = ()
    if len(found) != count or len(set(found)) != count:
        raise DataError(f"{where}: its data_spec does not describe {count} fields; write it anew")
    return found


def _leaves(node: Any, path: str) -> list[str]:
    if node["type"] is None:
        return [path or "0"]
    context = json.loads(node["context"]) if isinstance(node["context"], str) else node["context"]
    children = node["children_spec"]
    keys = context if isinstance(context, list) and len(context) == len(children) else None
    return [
        leaf
        for index, child in enumerate(children)
        for leaf in _leaves(
            child, ".".join(filter(None, (path, str(keys[index] if keys else index))))
        )
    ]


@dataclass(frozen=True)
class LitData(Form):
    """Names and kinds of a sample's leaves."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    bare: bool = False
    """Whether samples are numbers alone, without their sizes before them."""
    wanted: tuple[str, ...] = ()

    def of_fields(self, names: tuple[str, ...]) -> Form:
        return replace(self, wanted=names)

    def open(self, path: Path, name: str) -> Records:
        return _Samples(self, path, name)


class _Samples(OffsetRecords):
    def __init__(self, form: LitData, path: Path, name: str) -> None:
        super().__init__(path, name)
        self.form = form

    def sample(self, number: int) -> Mapping[str, Value]:
        (data, where), form = self.content(number), self.form
        if form.bare:
            code = _code(form.kinds[0], where)
            return {form.names[0]: array_of(data, code, None, where)}
        fields = Fields(data, where)
        pieces = [fields.take(size) for size in fields.sizes(len(form.kinds))]
        return {
            name: decoded(piece, kind, name, where) if is_among(name, form.wanted) else None
            for name, kind, piece in zip(form.names, form.kinds, pieces, strict=True)
        }


def _code(kind: str, where: str) -> str:
    number = kind.partition(":")[2]
    table = TORCH if "tensor" in kind else NUMPY if "numpy" in kind else {}
    code = table.get(int(number)) if number.isdigit() and len(number) < 4 else None
    if code is None:
        raise DataError(f"{where}: numbers of an unknown type ({kind}); write it anew")
    return code


def decoded(data: bytes, kind: str, field: str, where: str) -> Value:
    """A leaf's value by its kind. Raises `DataError`; never runs code."""
    plain = kind.partition(":")[0]
    if plain in IMAGES:
        return data
    if plain in ("str", "string", "text"):
        return text_of(data, where)
    if plain in ("bool", "boolean") and len(data) == 1:
        return bool(data[0])
    if plain in SCALARS:
        return array_of(data, SCALARS[plain], (1,), where)[0].item()
    if plain == "pil":
        return as_png(data, where)
    if plain in ("no_header_tensor", "no_header_numpy"):
        return array_of(data, _code(kind, where), None, where)
    if plain == "tensor":
        return _shaped(data, ">u4", TORCH, field, where)
    if plain == "numpy":
        return _shaped(data, "<u4", NUMPY, field, where)
    raise cannot_read(where, field, kind)


def _shaped(data: bytes, head: str, table: Mapping[int, str], field: str, where: str) -> Value:
    """An array behind its type, how many axes it has, and their lengths."""
    fields = Fields(data, where)
    number, axes = (int(n) for n in np.frombuffer(fields.take(8), head))
    if number not in table or axes > MOST_AXES:
        raise DataError(f"{where}: field {field!r} is not an array of known numbers; write it anew")
    shape = tuple(int(n) for n in np.frombuffer(fields.take(4 * axes), head))
    size = math.prod(shape) * np.dtype(table[number]).itemsize
    return array_of(fields.take(size), table[number], shape, where)
