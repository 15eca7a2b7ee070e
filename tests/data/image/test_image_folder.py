"""Folders of images: which are splits and which are classes, and that an image is what is in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from bigmodel_cli.data import open_data
from bigmodel_cli.data.image.folder import read_folder
from bigmodel_cli.data.image.images import FolderOptions
from bigmodel_cli.data.image.parquet import read_parquet
from bigmodel_cli.errors import DataError

Cli = Callable[..., Result]


def picture(path: str, value: int = 0, size: tuple[int, int] = (8, 8)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def pictures(*paths: str) -> None:
    for number, path in enumerate(paths):
        picture(path, number)


def found(root: str = "r", labelled: bool = True) -> dict[str, list[tuple[str, int]]]:
    raw = read_folder(Path(root), labelled)
    return {
        name: [
            (Path(n).relative_to(root).as_posix(), int(label))
            for n, label in zip(s.names, s.labels, strict=True)
        ]
        for name, s in raw.splits.items()
    }


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "DEV"])
@pytest.mark.parametrize("test", ["Test", "testing"])
def test_splits_by_every_usual_name(train: str, val: str, test: str) -> None:
    pictures(
        f"r/{train}/a/1.png",
        f"r/{train}/b/2.PNG",
        f"r/{val}/b/3.png",
        f"r/{test}/a/4.Png",
        f"r/{train}/.c/5.png",
    )
    Path("r/annotations").mkdir()
    Path("r/annotations/boxes.json").write_text("{}")
    assert found() == {
        "train": [(f"{train}/a/1.png", 0), (f"{train}/b/2.PNG", 1)],
        "val": [(f"{val}/b/3.png", 1)],
        "test": [(f"{test}/a/4.Png", 0)],
    }
    assert {n: [x for x, _ in v] for n, v in found(labelled=False).items()} == {
        n: [x for x, _ in v] for n, v in found().items()
    }


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/a/1", "val/a/1", "valid/a/1"],
         "r/val and r/valid: two folders for the val split; join them"),
        (["train/a/1", "Train/a/1"], "r/Train and r/train: two folders for the train split"),
        (["train/a/1", "test/a/1", "cat/1", "dog/1"],
         "r: folders of splits (train, test) beside others with images (cat, dog)"),
        (["car/1", "plane/1", "train/1"],
         "r/train: images lie right in it, as in a class, and its name is that of a split; "
         "where it is a class beside car, plane, put all classes into r/train (so "
         "r/train/train), or rename it"),
        (["other/1", "Test/1"], "r/Test: images lie right in it, as in a class"),
        (["train/1", "test/1"],
         "r: no folders of classes in it; the layout is root/class/image.png"),
    ],
)  # fmt: skip
def test_ambiguous_folder_layouts_are_refused(paths: list[str], message: str) -> None:
    pictures(*(f"r/{path}.png" for path in paths))
    with pytest.raises(DataError) as caught:
        found()
    assert message in str(caught.value)


def test_a_folder_without_a_training_split_is_refused() -> None:
    pictures("r/val/a/1.png", "r/Test/a/1.png")
    options = FolderOptions(root="r")
    with pytest.raises(DataError) as caught:
        open_data(options, base=Path(), say=print)
    assert "r: it holds val, test, and no folder train (or training) beside it" in str(caught.value)


def test_a_class_called_train_is_read_where_it_is_one_of_several(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures(
        "r/train/car/1.png",
        "r/train/train/2.png",
        "r/train/test/3.png",
        "r/train/stray.png",
        "r/notes.png",
    )
    assert read_folder(Path("r"), True).classes == ("car", "test", "train")
    assert (
        "2 images beside the folders of classes left out, the first: r/notes.png"
        in capsys.readouterr().err
    )


def test_hidden_folders_and_links_are_no_classes() -> None:
    pictures(
        "r/Cat/1.png",
        "r/cat/1.png",
        "r/.ipynb_checkpoints/1.png",
        "r/__MACOSX/1.png",
        "r/Cat/._1.png",
        "far/x/2.png",
    )
    Path("r/linked").symlink_to(Path("far").absolute())
    Path("r/linked/up").symlink_to("..")
    assert found()["train"] == [("Cat/1.png", 0), ("cat/1.png", 1), ("linked/x/2.png", 2)]
    Path("r/again").symlink_to("Cat")
    with pytest.raises(
        DataError,
        match=(
            r"again: the same folder as r/Cat|r/again: the same folder as r/Cat, which is another"
        ),
    ):
        found()
    Path("r/again").unlink()
    Path("r/lost").symlink_to("gone")
    with pytest.raises(DataError, match=r"^r/lost: a link to gone, which is not there"):
        found()


def test_the_digest_is_of_content_labels_names_and_order() -> None:
    pictures("r/a/1.bmp", "r/a/2.bmp", "r/b/1.bmp")
    first = read_folder(Path("r"), True).digest
    shutil.copytree("r", "elsewhere")
    assert read_folder(Path("elsewhere"), True).digest == first
    digests = {first, read_folder(Path("r"), False).digest}
    # exchanged, with the same sizes and times
    for change in (
        ["r/a/1.bmp", "r/a/2.bmp"],
        ["r/a/2.bmp", "r/b/1.bmp"],
    ):
        stats = [os.stat(path) for path in change]
        one, two = (Path(path).read_bytes() for path in change)
        for path, content, stat in zip(change, (two, one), stats, strict=True):
            Path(path).write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        digests.add(read_folder(Path("r"), True).digest)
    Path("r/a").rename("r/c")
    digests.add(read_folder(Path("r"), True).digest)
    assert len(digests) == 5


def test_two_columns_of_images_in_one_file_are_two_sources(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    picture("1.png", 9)
    cell = {"bytes": Path("1.png").read_bytes(), "path": None}
    pq.write_table(
        pa.table({"image": [cell], "mask": [cell], "label": [0], "other": [0]}), "t.parquet"
    )
    ways: list[Any] = [("image", "label"), ("mask", "label"), ("image", "other"), ("image", None)]
    assert len({read_parquet({"train": [Path("t.parquet")]}, *way).digest for way in ways}) == 4
    assert (
        read_parquet({"val": [Path("t.parquet")]}, *ways[0]).digest
        != read_parquet({"train": [Path("t.parquet")]}, *ways[0]).digest
    )


def two_folders() -> None:
    """A and B: the same names and sizes, the labels reversed."""
    for root, turn in (("A", 0), ("B", 1)):
        for label in range(2):
            for index in range(10):
                picture(
                    f"{root}/{('dark', 'light')[label]}/{index:02}.bmp",
                    200 * (label ^ turn) + index,
                )


@pytest.mark.parametrize("put_back", [False, True])
def test_a_model_sees_the_pixels_of_the_folder_that_is_named(
    put_back: bool, cnn_spec: Path, cli: Cli
) -> None:
    two_folders()
    text = (
        cnn_spec.read_text()
        .replace("type: digits", "type: image_folder\n  root: A")
        .split("  augment")
    )
    cnn_spec.write_text(text[0] + "task:" + text[1].split("task:")[1].replace("256", "20"))
    layers = "model.layers=[{type: flatten},{type: dense, units: classes}]"
    command = (
        "pretrain",
        cnn_spec,
        "--out",
        "run",
        "--set",
        layers,
        "--set",
        "train.optimizer.lr=0.1",
        "--set",
        "train.ema=null",
        "--set",
        "data.val_fraction=0",
    )
    assert cli(*command).status == 0
    on_a = cli("eval", "run", "--split", "train", "--json")
    on_b = cli("eval", "run", "--split", "train", "--json", "--set", "data.root=B")
    assert ('"accuracy": 1.0' in on_a.out, '"accuracy": 0.0' in on_b.out) == (True, True), (
        on_a.out,
        on_b.out,
    )
    for path in Path("A").rglob("*.bmp"):
        stat = path.stat()
        shutil.copyfile(Path("B", *path.parts[1:]), path)
        if put_back:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    resumed = cli(*command, "--set", "train.steps=14", "--resume")
    assert resumed.status == 4, resumed.err
    assert "the data is not what this run was trained on (its fingerprint differs)" in resumed.err


@pytest.mark.parametrize("only", [None, "test"])
def test_a_split_whose_images_lie_in_no_class(only: str | None) -> None:
    """The layout of many competitions: classes to train on, and a flat folder of tests."""
    pictures("r/train/cat/1.png", "r/train/dog/2.png", "r/test/3.png")
    with pytest.raises(
        DataError, match=r"r/test: its images are not in folders of classes.*predict"
    ):
        open_data(
            FolderOptions(root="r", val_fraction=0), base=Path(), say=lambda _: None, only=only
        )
    assert {n: len(s) for n, s in found(labelled=False).items()} == {"train": 2, "test": 1}


def test_classes_that_differ_only_in_case_are_reported() -> None:
    pictures("r/cat/1.png", "r/Cat/2.png", "r/dog/3.png", "r/01/4.png", "r/1/5.png")
    said: list[str] = []
    open_data(FolderOptions(root="r", val_fraction=0), base=Path(), say=said.append)
    assert [s for s in said if "different labels" in s] == [
        "warning: '01' and '1' are read as different labels",
        "warning: 'Cat' and 'cat' are read as different labels",
    ]
