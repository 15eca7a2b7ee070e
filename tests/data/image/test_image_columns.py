"""Columns of images and labels: what is accepted, and each refusal with file and row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pictures import png
from test_images import opened

from bigmodel_cli.errors import DataError

pa = pytest.importorskip("pyarrow")
IMAGE = {"bytes": png(np.arange(12, dtype=np.uint8).reshape(3, 4)), "path": None}


def write(
    name: str,
    labels: list[Any],
    images: list[Any] | None = None,
    names: list[str] | None = None,
    kind: Any = None,
) -> str:
    import pyarrow.parquet as pq

    images = [IMAGE] * len(labels) if images is None else images
    table = pa.table({"image": pa.array(images), "label": pa.array(labels, kind)})
    if names is not None:
        schema = json.dumps(
            {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        )
        table = table.replace_schema_metadata({"huggingface": schema})
    pq.write_table(table, name)
    return name


def labels_of(said: list[str] | None = None, **options: Any) -> tuple[list[int], tuple[str, ...]]:
    data = opened(said, type="parquet_images", **options)
    train = data.split("train")
    return train.batch(np.arange(len(train)), 0, 0, False)["label"].tolist(), data.info.classes


@pytest.mark.parametrize(
    ("labels", "names", "numbers", "classes"),
    [
        ([2, 0, 1, 0], None, [2, 0, 1, 0], ("0", "1", "2")),
        ([1.0, 0.0], None, [1, 0], ("0", "1")),
        ([True, False, True], None, [1, 0, 1], ("false", "true")),
        (["dog", "ant", "dog", "cat"], None, [2, 0, 2, 1], ("ant", "cat", "dog")),
        (["10", "9", "10"], None, [1, 0, 1], ("9", "10")),
        ([1, 0], ["b", "a"], [1, 0], ("b", "a")),
        (["a", "b"], ["b", "a"], [1, 0], ("b", "a")),
    ],
)
def test_labels_that_are_read(
    labels: list[Any], names: list[str] | None, numbers: list[int], classes: tuple[str, ...]
) -> None:
    assert labels_of(train=[write("a.parquet", labels, names=names)]) == (numbers, classes)


def test_words_are_classes_over_all_splits() -> None:
    said: list[str] = []
    train, test = write("a.parquet", ["dog", "ant"]), write("b.parquet", ["cat", "dog"])
    numbers, classes = labels_of(said, train=[train], test=[test])
    assert (numbers, classes) == ([2, 0], ("ant", "cat", "dog"))
    assert "warning: the train split has no image of class cat" in said
    coded = write("c.parquet", ["dog", "ant"], kind=pa.dictionary(pa.int8(), pa.string()))
    assert labels_of(train=[coded])[0] == [1, 0]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, None, 1], None,
         "row 1: data.label_column: 'label' holds nothing (null); a label is a whole number, or "
         "the name"),
        ([0, 1.5], None, "row 1: data.label_column: 'label' holds 1.5; a label is a whole number"),
        ([float("nan"), 1.0], None, "row 0: data.label_column: 'label' holds nan"),
        (["a", " "], None, "row 1: data.label_column: 'label' holds ' '"),
        (["a", None], None, "row 1: data.label_column: 'label' holds nothing (null)"),
        ([[1], [2]], None, "row 0: data.label_column: 'label' holds a value of type list"),
        (["a", "bee"], ["a", "beer"], "row 1: the label 'bee' is not a class; did you mean beer?"),
        ([0, 2], ["a", "b"], "row 1: label 2, and the classes are 0 to 1"),
        ([0, -1], None, "row 1: label -1, and the classes are 0 to 0"),
        ([0, 10**12], None, "row 1: label 1000000000000, and there may be 1,000,000 classes"),
    ],
)  # fmt: skip
def test_labels_that_are_refused(labels: list[Any], names: list[str] | None, message: str) -> None:
    first = write("a.parquet", ["a"] if isinstance(labels[0], str) else [0], names=names)
    with pytest.raises(DataError) as caught:
        labels_of(train=[first, write("b.parquet", labels, names=names)])
    assert f"b.parquet: {message}" in str(caught.value)


def test_files_that_do_not_agree() -> None:
    words, numbers = write("a.parquet", ["a", "b"]), write("b.parquet", [0, 1])
    with pytest.raises(
        DataError,
        match=r"b.parquet: row 0: the label 0 beside 'a': they are all numbers, or all words",
    ):
        labels_of(train=[words], test=[numbers])
    one, other = (
        write("c.parquet", [0, 1], names=["x", "y"]),
        write("d.parquet", [0, 1], names=["y", "x"]),
    )
    with pytest.raises(
        DataError, match=r"d.parquet: the names of its classes are not those of .*c.parquet"
    ):
        labels_of(train=[one], test=[other])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([IMAGE, None], "row 1: data.image_column: 'image' holds no image (null)"),
        (
            [{"bytes": None, "path": "x/y.png"}],
            "row 0: data.image_column: 'image' holds no bytes, only a path ('x/y.png')",
        ),
        (
            [IMAGE, {"bytes": None, "path": None}],
            "row 1: data.image_column: 'image' holds nothing (null) rather than the bytes",
        ),
        (
            ["text"],
            "row 0: data.image_column: 'image' holds a value of type str rather than the bytes",
        ),
        ([IMAGE, {"bytes": b"junk", "path": None}], "row 1: not a whole image"),
    ],
)
def test_images_that_are_refused(images: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        labels_of(train=[write("a.parquet", [0] * len(images), images)])
    assert f"a.parquet: {message}" in str(caught.value)


def test_plain_bytes_and_two_columns_of_one_file() -> None:
    import pyarrow.parquet as pq

    dark, light = (png(np.full((3, 4), v, np.uint8)) for v in (10, 200))
    pq.write_table(
        pa.table({"dark": [dark, dark], "light": [light, light], "label": [0, 1]}), "a.parquet"
    )
    for column, value in (("dark", 10), ("light", 200)):  # each its own pixels, in the cache too
        data = opened(
            type="parquet_images", train=["a.parquet"], image_column=column, normalize="none"
        )
        assert (
            int(data.split("train").batch(np.arange(2), 0, 0, False)["image"].max() * 255 + 0.5)
            == value
        )
