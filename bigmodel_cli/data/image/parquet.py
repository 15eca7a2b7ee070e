"""Images with labels, sets of labels or numbers, in the columns of Parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.data.hashes import content_hashes
from bigmodel_cli.data.image.sources import Labels, RawImages, RawSplit
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.targets import multi_hot, read_number, read_set
from bigmodel_cli.data.text.table_parquet import class_names
from bigmodel_cli.data.text.table_survey import sort_classes
from bigmodel_cli.errors import DataError, did_you_mean
from bigmodel_cli.heeding import heeding
from bigmodel_cli.packages import need

MOST_CLASSES = 1_000_000
Label = int | str


def read_parquet(
    files: Mapping[str, Sequence[Path]],
    image: str,
    label: str | None,
    separator: str | None = None,
    targets: Sequence[str] = (),
) -> RawImages:
    """Parquet files with an image column as Hugging Face datasets write it ({bytes, path}) and a
    column of labels, or none.

    Labels are sets where a `separator` is given; `targets` are columns of numbers instead of
    labels.
    """
    columns = [image, *(targets or ([] if label is None else [label]))]
    kind = [True] if targets else [] if separator is None else [separator]
    splits: dict[str, RawSplit] = {}
    values: dict[str, list[Any]] = {}  # of each row, in the columns behind that of images
    classes: dict[tuple[str, ...], Path] = {}  # of a schema, and the first file that has them
    for name, paths in files.items():
        images: list[bytes] = []
        places: list[str] = []
        values[name] = []
        sha = hashlib.sha256()
        for path, content in zip(paths, content_hashes(paths), strict=True):
            sha.update(json.dumps([name, content, columns, *kind]).encode())
            table = _table(path, columns, "data.target_columns" if targets else "data.label_column")
            rows = [f"{path}: row {row}" for row in range(table.num_rows)]
            images += read_images(table.column(image).to_pylist(), rows, image)
            places += rows
            values[name] += zip(*(table.column(c).to_pylist() for c in columns[1:]), strict=True)
            classes.setdefault(class_names(table.schema.metadata, columns[-1:]), path)
        none = np.full(len(images), -1, np.int64)
        splits[name] = RawSplit(none, sha.hexdigest(), encoded=images, names=places)
    if targets:
        return _of_numbers(splits, values, targets)
    if label is None:
        return RawImages(splits, ())
    if separator is not None:
        return _of_sets(splits, values, label, separator)
    if len(classes) > 1:
        first, other = list(classes.values())[:2]
        raise DataError(
            f"{other}: the names of its classes are not those of {first}; make one set of names of"
            " them"
        )
    labels = {
        n: read_labels([row[0] for row in values[n]], s.names, label) for n, s in splits.items()
    }
    return _labelled(
        splits, *number_labels(labels, {n: s.names for n, s in splits.items()}, *classes)
    )


def _table(path: Path, columns: list[str], option: str) -> Any:
    """The columns of a file; `option` names those that are not the images'."""
    pyarrow, pq = (
        need(name, "parquet", "data.type: parquet_images")
        for name in ("pyarrow", "pyarrow.parquet")
    )
    try:
        table = heeding(partial(pq.read_table, path, columns=columns))
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        named = ", ".join(columns)
        raise DataError(
            f"{path}: cannot be read as Parquet with columns {named}: {error}"
        ) from None
    if not set(columns) <= set(table.column_names):
        named = " and ".join(map(repr, columns))
        raise DataError(f"{path}: no columns {named}; set data.image_column and {option}")
    return table


def _labelled(
    splits: dict[str, RawSplit],
    labels: Mapping[str, Labels],
    classes: tuple[str, ...] = (),
) -> RawImages:
    """The splits with their labels."""
    return RawImages({n: replace(s, labels=labels[n]) for n, s in splits.items()}, classes)


def _of_numbers(
    splits: dict[str, RawSplit], values: dict[str, list[Any]], targets: Sequence[str]
) -> RawImages:
    """Images with numbers, one of each column."""
    numbers = {
        n: [
            [
                read_number(value, place, f"data.target_columns ({name})")
                for value, name in zip(row, targets, strict=True)
            ]
            for row, place in zip(values[n], s.names, strict=True)
        ]
        for n, s in splits.items()
    }
    arrays = {n: np.array(own, np.float64).reshape(-1, len(targets)) for n, own in numbers.items()}
    return replace(_labelled(splits, arrays), targets=tuple(targets))


def _of_sets(
    splits: dict[str, RawSplit], values: dict[str, list[Any]], label: str, separator: str
) -> RawImages:
    """Images with sets of labels."""
    option = "data.label_column"
    sets = {
        n: [
            read_set(row[0], separator, place, option)
            for row, place in zip(values[n], s.names, strict=True)
        ]
        for n, s in splits.items()
    }
    classes = sort_classes({name: "" for own in sets.values() for held in own for name in held})
    if not classes:
        raise DataError(f"{option}: {label!r}: no image has a label; is it the right column?")
    arrays = {n: multi_hot(own, classes, option) for n, own in sets.items()}
    return replace(_labelled(splits, arrays, classes), sets=True)


def read_images(values: Sequence[Any], places: Sequence[str], column: str) -> list[bytes]:
    """Encoded images: bytes, or Hugging Face's {bytes, path}.

    Raises `DataError` naming a row without.
    """
    images = []
    for value, place in zip(values, places, strict=True):
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            images.append(content)
            continue
        path = value.get("path") if isinstance(value, dict) else None
        if value is None:
            reason = "no image (null)"
        elif path is not None:
            reason = f"no bytes, only a path ({path!r}); write the images into the file"
        else:
            reason = f"{_kind(content)} rather than the bytes of an image, or {{bytes, path}}"
        raise DataError(f"{place}: data.image_column: {column!r} holds {reason}")
    return images


def read_labels(values: Sequence[Any], places: Sequence[str], column: str) -> list[Label]:
    """Integers and words as they are, booleans as words.

    Raises `DataError` naming a row with anything else.
    """
    labels: list[Label] = []
    for value, place in zip(values, places, strict=True):
        if isinstance(value, bool):
            labels.append(str(value).lower())
        elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            labels.append(int(value))
        elif isinstance(value, str) and value.strip():
            labels.append(value)
        else:
            shown = repr(value) if isinstance(value, float | str) else _kind(value)
            raise DataError(
                f"{place}: data.label_column: {column!r} holds {shown}; a label is a whole number,"
                " or the name of a class"
            )
    return labels


def _kind(value: Any) -> str:
    return "nothing (null)" if value is None else f"a value of type {type(value).__name__}"


def number_labels(
    labels: dict[str, list[Label]], places: dict[str, list[str]], names: tuple[str, ...] = ()
) -> tuple[dict[str, Ints], tuple[str, ...]]:
    """(the labels of each split as numbers (N,), the classes).

    Integers index the `names` of a schema, or are the classes where there are none. Words are among
    the names, or are classes in sorted order. Raises `DataError` naming a row that fits neither, or
    is of another kind than those before it.
    """
    first = next((label for own in labels.values() for label in own), 0)
    rows = [
        (label, place)
        for n, own in labels.items()
        for label, place in zip(own, places[n], strict=True)
    ]
    for label, place in rows:
        if isinstance(label, str) != isinstance(first, str):
            raise DataError(
                f"{place}: the label {label!r} beside {first!r}: they are all numbers, or all words"
            )
    if isinstance(first, str):
        classes = names or sort_classes({str(label): "" for label, _ in rows})
        number = {name: index for index, name in enumerate(classes)}
        for label, place in rows:
            if label not in number:
                raise DataError(
                    f"{place}: the label {label!r} is not a class"
                    f"{did_you_mean(str(label), classes)}"
                )
        return {
            n: np.array([number[str(label)] for label in own], np.int64)
            for n, own in labels.items()
        }, classes
    for label, place in rows:
        if not -MOST_CLASSES <= int(label) < MOST_CLASSES:
            raise DataError(
                f"{place}: label {label}, and there may be {MOST_CLASSES:,} classes from 0 on"
            )
    numbers = {n: np.array(own, np.int64) for n, own in labels.items()}
    most = max((int(own.max(initial=-1)) for own in numbers.values()), default=-1)
    return numbers, names or tuple(map(str, range(max(0, most) + 1)))
