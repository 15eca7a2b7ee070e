"""Rows of Parquet files: columns by name, by number, or a.b for the field b of the struct a."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.errors import DataError, did_you_mean
from bigmodel_cli.packages import need
from bigmodel_cli.progress import advance

Wanted = Sequence[tuple[str, str | int]]  # (option, column)


def parquet_rows(
    path: Path, wanted: Wanted, labelled: bool
) -> Iterator[tuple[str, list[Any], int, tuple[str, ...]]]:
    """(place, wanted values, 0, the columns' names) of each row, as for other tables.

    The last value is a label where `labelled`, and gets its name from the schema.
    """
    with _opened(path) as file:
        import pyarrow.compute as pc

        schema = file.schema_arrow
        steps = [_steps(schema, column, f"{path}: {option}") for option, column in wanted]
        classes = class_names(schema.metadata, steps[-1]) if labelled else ()
        number = 0
        for batch in file.iter_batches(columns=list(dict.fromkeys(own[0] for own in steps))):
            values = []
            for first, *inner in steps:
                column = batch.column(first)
                values.append((pc.struct_field(column, inner) if inner else column).to_pylist())
            for row in zip(*values, strict=True):
                place = f"{path}: row {number}"
                own = [*row[:-1], _name(row[-1], classes, place)] if classes else list(row)
                yield place, own, 0, tuple(schema.names)
                number += 1
            advance(path.stat().st_size * batch.num_rows // max(1, file.metadata.num_rows))


def parquet_names(path: Path) -> tuple[str, ...]:
    """The names of a file's columns.

    Raises `DataError` where it is not a Parquet file.
    """
    with _opened(path) as file:
        return tuple(file.schema_arrow.names)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Parquet file; what fails inside raises `DataError` naming it."""
    pyarrow, pq = (
        need(name, "parquet", f"{path}: reading it") for name in ("pyarrow", "pyarrow.parquet")
    )
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).split("\n")), "") or type(error).__name__
        raise DataError(f"{path}: cannot be read as Parquet: {reason}") from None


def _steps(schema: Any, column: str | int, place: str) -> list[str]:
    """The names that lead to a column: one, or those of structs and the field in them."""
    if isinstance(column, int):
        if column >= len(schema.names):
            raise DataError(
                f"{place} is number {column} (from 0), and there are {len(schema.names)} columns"
            )
        return _steps(schema, schema.names[column], place)
    found = _below(list(schema), column)
    if found is None:
        names = [
            n
            for field in schema
            for n in (field.name, *(f"{field.name}.{f.name}" for f in _fields(field)))
        ]
        shown = ", ".join(names[:20]) or "none"
        raise DataError(
            f"{place}: no column {column!r}; it has {shown}{did_you_mean(column, names)}"
        )
    if schema.names.count(found[0]) > 1:
        raise DataError(
            f"{place}: {schema.names.count(found[0])} columns are called {found[0]!r}; rename one"
        )
    return found


def _below(fields: Sequence[Any], column: str) -> list[str] | None:
    """A field of that name, or the field b of the struct a for a.b."""
    if any(field.name == column for field in fields):
        return [column]
    for field in fields:
        if column.startswith(f"{field.name}."):
            inner = _below(_fields(field), column[len(field.name) + 1 :])
            if inner is not None:
                return [field.name, *inner]
    return None


def _fields(field: Any) -> list[Any]:
    import pyarrow

    inner = field.type.num_fields if pyarrow.types.is_struct(field.type) else 0
    return [field.type.field(i) for i in range(inner)]


def class_names(metadata: Any, steps: Sequence[str]) -> tuple[str, ...]:
    """The names that Hugging Face's feature schema gives to the labels of a column, or () where it
    gives none.
    """
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"]
        for step in steps:
            feature = feature[step]
        return tuple(map(str, feature["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _name(label: Any, classes: tuple[str, ...], place: str) -> Any:
    """The name that the file's schema gives to a numbered label."""
    if not isinstance(label, int):
        return label
    if not 0 <= label < len(classes):
        raise DataError(
            f"{place}: label {label}, and the classes are 0 to {len(classes) - 1}; leave the"
            " row out"
        )
    return classes[label]
