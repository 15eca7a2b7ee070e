"""Images in shards: the pixels and labels of the files, and what is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigmodel_cli.data import SOURCES, open_data
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.tasks.classification import ClassificationOptions, class_weights
from tests.data.shards.serving import serving
from tests.data.shards.test_shard_formats import MADE


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def write_tar(path: Path, first: int, count: int) -> list[Any]:
    """A tar file of images whose class is their number modulo 3; the pixels."""
    random, found = np.random.default_rng(first), []
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            pixels = random.integers(0, 256, (7, 7, 3), dtype=np.uint8)
            found.append(pixels)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            for ending, data in (("png", file.getvalue()), ("cls", str(number % 3).encode())):
                entry = tarfile.TarInfo(f"{number:05d}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return found


def opened(said: list[str] | None = None, **options: Any) -> DataSet:
    values = {"type": "image_shards", "image": "png", "classes": 3, "size": 7, **options}
    checked = SOURCES["image_shards"].model_validate(values)
    return open_data(checked, base=Path(), say=[].append if said is None else said.append)


def test_the_pixels_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    pixels = [*write_tar(tmp_path / "in/0.tar", 0, 9), *write_tar(tmp_path / "in/1.tar", 9, 6)]
    data = opened(train=[str(tmp_path / "in")], mixed_shards=1)
    split = data.split("train")
    order = split.order(np.arange(15), 1, 0)
    assert sorted(order.tolist()) == list(range(15))
    batch = split.batch(order, 1, 0, False)
    assert batch["label"].tolist() == (order % 3).tolist()
    scaled = np.stack(pixels).transpose(0, 3, 1, 2) / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
    assert np.allclose(data.info.mean, mean, atol=1e-6)
    expected = (scaled - mean[:, None, None]) / std[:, None, None]
    assert np.allclose(batch["image"], expected[order], atol=1e-4)


def test_the_same_over_http(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / "in" / f"{number}.tar", 10 * number, 10)
    local = opened(train=[str(tmp_path / "in")])
    with serving(tmp_path / "in") as server:
        there = opened(train=[f"{server.url}/{{0..2}}.tar"], cache_bytes=100_000)
        rows = np.array([29, 0, 13, 14])
        for name in ("image", "label"):
            a, b = (d.split("train").batch(rows, 0, 0, False)[name] for d in (local, there))
            assert torch.equal(a, b)


def test_images_of_mds() -> None:
    folder = str(MADE / "mds")
    with pytest.raises(DataError, match=r"label -3, and the classes are 0 to 8"):
        opened(train=[folder], image="img", label="n", classes=9)
    with pytest.raises(DataError, match=r"'meta\.a' is not a number"):
        opened(train=[folder], image="img", label="meta.a", classes=9)


def test_a_mixture_of_images_and_its_class_counts(tmp_path: Path) -> None:
    """Each source in its own epochs, augmented anew in each; classes as often as they come."""
    write_tar(tmp_path / "a/0.tar", 0, 9)  # three of each class
    write_tar(tmp_path / "b/0.tar", 2, 1)  # class 2
    mix = [{"files": [str(tmp_path / n)], "weight": w} for n, w in (("a", 2), ("b", 1))]
    said: list[str] = []
    data = opened(mix=mix, count_classes=True, said=said)
    assert any("source 1" in line and "33.33% of all rows" in line for line in said)
    assert data.info.class_counts == (2, 2, 6)  # of 10, two thirds from a
    assert opened(mix=mix).info.class_counts == ()
    split = data.split("train")
    labels = [split.batch(np.arange(10), e, 3, False)["label"] for e in range(8)]
    counts = np.bincount(torch.cat(labels), minlength=3)
    assert counts.sum() == 80
    assert abs(counts / 80 - np.array([2, 2, 5]) / 9).max() < 0.03
    erasing = [{"type": "RandomErasing", "p": 1.0}]
    augmented = opened(mix=mix, augment=erasing, normalize="none").split("train")
    batch = augmented.batch(np.arange(10), 0, 3, True)
    alone = batch["image"][batch["label"] == 2]
    assert len(alone.flatten(1).unique(dim=0)) == len(alone)


def test_balanced_classes_need_their_counts(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/0.tar", 0, 4)
    options = ClassificationOptions.model_validate({"class_weights": "balanced"})
    found = opened(train=[str(tmp_path / "in")], count_classes=True).info
    assert class_weights(options, found) == pytest.approx((4 / 6, 4 / 3, 4 / 3))
    with pytest.raises(SpecError, match=r"not known; .*data\.count_classes: true"):
        class_weights(options, opened(train=[str(tmp_path / "in")]).info)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 2}, "label 2, and the classes are 0 to 1"),
        ({"image": "jpg"}, r"no field 'jpg'; it has png, cls"),
        ({"image": "cls"}, "not an encoded image"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "in/0.tar", 0, 6)
    with pytest.raises(DataError, match=words):
        opened(train=[str(tmp_path / "in")], **options)
