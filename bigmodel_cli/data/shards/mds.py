"""MDS shards of MosaicML Streaming: index.json beside files of samples with typed columns.

A shard is a count, the offsets of its samples (uint32), its description as JSON, and the samples:
the sizes of the columns that have no fixed one (uint32), then the columns' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
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

SCALARS = {
    **{
        f"{kind}{bits}": f"<{kind[0]}{bits // 8}"
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "int": "<i8",
}
KINDS = {8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 18: "<f2", 32: "<u4", 33: "<i4", 34: "<f4"}
KINDS |= {64: "<u8", 65: "<i8", 66: "<f8"}
"""The types of an array's numbers by the byte that names them."""
IMAGES = {"jpeg", "png", "webp", "bytes"}
TEXTS: dict[str, Callable[[str], Any]] = {
    "str_int": int,
    "str_float": float,
    "str_decimal": Decimal,
}
MOST_DIGITS = 400
LISTS = {"jpeg_array": 0, "jpegarray": 0, "list[jpeg]": 4, "list[png]": 4, "list[pil]": 4}
"""Kinds of lists of images, and the bytes before their count that mean nothing."""


@dataclass(frozen=True)
class MDS(Form):
    """Columns of a shard: names, encodings, and sizes where they are fixed."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[int | None, ...]
    wanted: tuple[str, ...] = ()

    def of_fields(self, names: tuple[str, ...]) -> Form:
        return replace(self, wanted=names)

    def open(self, path: Path, name: str) -> Records:
        return _Samples(self, path, name)


class _Samples(OffsetRecords):
    def __init__(self, form: MDS, path: Path, name: str) -> None:
        super().__init__(path, name)
        self.form = form

    def sample(self, number: int) -> Mapping[str, Value]:
        (data, where), form = self.content(number), self.form
        fields = Fields(data, where)
        given = iter(fields.sizes(form.sizes.count(None)))
        sizes = [next(given) if size is None else size for size in form.sizes]
        pieces = [fields.take(size) for size in sizes]
        return {
            name: decoded(piece, kind, name, where) if is_among(name, form.wanted) else None
            for name, kind, piece in zip(form.names, form.kinds, pieces, strict=True)
        }


def decoded(data: bytes, kind: str, field: str, where: str) -> Value:
    """A field's value by its encoding. Raises `DataError`; never runs code."""
    if kind in IMAGES:
        return data
    try:
        if kind == "str":
            return text_of(data, where)
        if kind in SCALARS:
            (value,) = np.frombuffer(data, SCALARS[kind])
            return value.item()
        if kind in TEXTS:
            return TEXTS[kind](text_of(data[:MOST_DIGITS], where))
        if kind == "json":
            return json.loads(text_of(data, where))
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{where}: field {field!r} is not {kind}: {error}") from None
    if kind.split(":")[0] == "ndarray":
        return _array(data, kind, where)
    if kind == "pil":
        return as_png(data, where)
    if kind in LISTS:
        fields = Fields(data[LISTS[kind] :], where)
        (count,) = fields.sizes(1)
        inner = kind.removeprefix("list[").removesuffix("]")
        pieces = [fields.take(size) for size in fields.sizes(count)]
        return [as_png(piece, where) if inner == "pil" else piece for piece in pieces]
    raise cannot_read(where, field, kind)


def _array(data: bytes, kind: str, where: str) -> Any:
    """An array; what of type and shape the encoding leaves out stands before its numbers."""
    fields = Fields(data, where)
    _, dtype, shape = (*kind.split(":"), "", "")[:3]
    code = SCALARS.get(dtype) if dtype else KINDS.get(fields.take(1)[0])
    if code is None:
        raise DataError(f"{where}: an array of an unknown type; write it anew")
    if shape:
        try:
            sizes = [int(size) for size in shape.split(",")]
        except ValueError:
            raise DataError(f"{where}: {kind!r} is not the kind of an array") from None
    else:
        head = fields.take(1)[0]
        width = 1 << head % 4
        sizes = [int(n) for n in np.frombuffer(fields.take((head >> 2) * width), f"<u{width}")]
    size = math.prod(sizes) * np.dtype(code).itemsize
    return array_of(fields.take(size), code, tuple(sizes), where)
