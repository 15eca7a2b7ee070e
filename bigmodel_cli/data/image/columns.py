"""Columns of images and labels in Parquet files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel_cli.data.text.table_survey import sort_classes
from bigmodel_cli.errors import DataError, did_you_mean

MOST_CLASSES = 1_000_000
Label = int | str
Ints = np.ndarray[Any, np.dtype[np.int64]]


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
            shown = (
                "nothing (null)"
                if value is None
                else repr(value)
                if isinstance(value, (float, str))
                else _kind(value)
            )
            raise DataError(
                f"{place}: data.label_column: {column!r} holds {shown}; a label is a whole number,"
                " or the name of a class"
            )
    return labels


def _kind(value: Any) -> str:
    return "nothing (null)" if value is None else f"a value of type {type(value).__name__}"


def number_labels(
    labels: dict[str, list[Label]], places: dict[str, list[str]], names: tuple[str, ...]
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


def class_names(metadata: Any, label: str) -> tuple[str, ...]:
    """The names that Hugging Face's feature schema gives to the labels, or () where there are
    none.
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()
