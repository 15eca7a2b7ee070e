"""Images without labels, and a part of the labels: which images are there, and what is said where
they do not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image
from test_images import folder, opened

from bigmodel_cli.data.holdout import part_of_each_class
from bigmodel_cli.errors import DataError

Cli = Callable[..., Result]


def pictures(root: str, count: int) -> None:
    """Pictures without folders of classes, some a level further down."""
    for index in range(count):
        path = Path(root, "more" if index % 2 else "", f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 9 * index, np.uint8)).save(path)


def test_a_folder_without_classes() -> None:
    pictures("plain", 6)
    data = opened(type="image_folder", root="plain", labels=False, val_fraction=0.4)
    assert data.info.classes == ()
    assert data.names() == {"image"}
    assert {n: len(data.split(n)) for n in data.splits} == {"train": 4, "val": 2}
    Path("empty").mkdir()
    with pytest.raises(
        DataError, match=r"no folders of classes in it; .* or set data.labels: false"
    ):
        opened(type="image_folder", root="empty")
    with pytest.raises(DataError, match="the train split has no images"):
        opened(type="image_folder", root="empty", labels=False)


def test_splits_without_classes() -> None:
    pictures("set/train", 5)
    pictures("set/test", 3)
    data = opened(type="image_folder", root="set", labels=False)
    assert {n: len(data.split(n)) for n in data.splits} == {"train": 5, "test": 3}


@pytest.mark.parametrize("streamed", [False, True])
def test_labels_left_aside_leave_the_images_as_they_are(
    streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder()
    if streamed:
        monkeypatch.setattr("bigmodel_cli.data.image.loading.RESIDENT_BYTES", 1)
    labelled, without = (
        opened(type="image_folder", root="pictures", labels=kept) for kept in (True, False)
    )
    assert labelled.names() == {"image", "label"}
    assert without.names() == {"image"}
    assert (labelled.info.mean, labelled.info.std) == (without.info.mean, without.info.std)
    both = [
        data.split("train").batch(np.arange(8), 0, 0, False)["image"]
        for data in (labelled, without)
    ]
    assert torch.equal(both[0], both[1])
    digits = opened(type="digits", labels=False)
    assert digits.info.classes == ()
    assert digits.names() == {"image"}


def test_parquet_needs_no_column_of_labels() -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet as pq

    pictures("plain", 4)
    content = [
        {"bytes": p.read_bytes(), "path": None} for p in sorted(Path("plain").rglob("*.png"))
    ]
    pq.write_table(pyarrow.table({"image": content}), "images.parquet")
    data = opened(type="parquet_images", train=["images.parquet"], labels=False)
    assert len(data.split("train")) == 4
    assert data.info.classes == ()
    with pytest.raises(DataError, match="columns image, label"):
        opened(type="parquet_images", train=["images.parquet"])
    with pytest.raises(DataError, match="columns picture"):
        opened(
            type="parquet_images", train=["images.parquet"], labels=False, image_column="picture"
        )


@pytest.mark.parametrize("streamed", [False, True])
def test_label_fraction_keeps_labels_class_by_class(
    streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(count=10)
    if streamed:
        monkeypatch.setattr("bigmodel_cli.data.image.loading.RESIDENT_BYTES", 1)
    whole, part = (
        opened(type="image_folder", root="pictures", label_fraction=f) for f in (1.0, 0.3)
    )
    assert part.split("train").resident != streamed
    assert len(part.split("train")) == 6
    batch = part.split("train").batch(np.arange(6), 0, 0, False)
    assert batch["label"].tolist() == [0, 0, 0, 1, 1, 1]
    every = whole.split("train").batch(np.arange(20), 0, 0, False)
    same = (every["image"][:, None] == batch["image"]).flatten(2).all(2)  # (20, 6)
    # they are images of the whole, normalised as the whole is
    assert same.sum(0).tolist() == [1] * 6
    assert torch.equal(every["label"][same.nonzero()[:, 0]], batch["label"])
    assert part.fingerprint != whole.fingerprint


def test_the_other_splits_keep_all_images() -> None:
    whole, part = (opened(type="digits", label_fraction=f, val_fraction=0.1) for f in (1.0, 0.1))
    assert [len(part.split(n)) for n in ("val", "test")] == [
        len(whole.split(n)) for n in ("val", "test")
    ]
    labels = part.split("train").batch(np.arange(len(part.split("train"))), 0, 0, False)["label"]
    assert set(torch.bincount(labels).tolist()) <= {12, 13}


def test_label_fractions_are_balanced_and_nested() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 1000)
    small, large = part_of_each_class(labels, 0.1), part_of_each_class(labels, 0.35)
    assert set(small) < set(large)
    for part, fraction in ((small, 0.1), (large, 0.35)):
        assert (np.diff(part) > 0).all()
        for label in range(5):
            assert (labels[part] == label).sum() == round(fraction * (labels == label).sum())
    # one of each is always left
    assert sorted(labels[part_of_each_class(labels, 1e-6)]) == [
        0,
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (
            "labels: false",
            2,
            "task.type: classification needs data with labels, and data.type: digits has none",
        ),
        ("labels: false, label_fraction: 0.1", 2, "with labels: false there are none"),
        ("label_fraction: 0.0", 2, "data.label_fraction: 0.0 is not greater than 0"),
        ("label_fraction: 1.5", 2, "data.label_fraction: 1.5 is not at most 1"),
        (
            "label_fraction: 0.01",
            3,
            "the train split has 10 samples, fewer than train.batch_size 256",
        ),
    ],
)
def test_data_that_a_classifier_cannot_use(
    options: str, status: int, message: str, cnn_spec: Path, cli: Cli
) -> None:
    result = cli("pretrain", cnn_spec, "--out", "run", "--set", f"data={{type: digits, {options}}}")
    assert (result.status, message in result.err) == (status, True), result.err
    assert not Path("run/checkpoints").exists()
