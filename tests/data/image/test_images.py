"""Images: each source, each conversion, each fault; augmentation equals torchvision's and belongs
to the sample.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from PIL import Image

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import SOURCES, open_data, prepare_image
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.data.image.augment import (
    Augmentation,
    RandomAffineOptions,
    RandomCropOptions,
    RandomErasingOptions,
    RandomFlipOptions,
    V2Options,
    affine,
)
from bigmodel_cli.data.image.pixels import decode, normalise
from bigmodel_cli.errors import DataError, SpecError

Cli = Callable[..., Result]


def opened(said: list[str] | None = None, **options: Any) -> DataSet:
    """All of the training images, unless a test says what part of them is held out."""
    options = {"val_fraction": 0, **options}
    kept = said if said is not None else []
    return open_data(
        SOURCES[options["type"]].model_validate(options), base=Path.cwd(), say=kept.append
    )


def folder(
    root: str = "pictures", classes: tuple[str, ...] = ("cat", "dog"), count: int = 4
) -> Path:
    for number, label in enumerate(classes):
        (Path(root) / label).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((6, 8, 3), (60 * number, 10 * index, 5), np.uint8)
            Image.fromarray(pixels).save(Path(root) / label / f"{index}.png")
    return Path(root)


def test_mnist_is_read_as_torchvision_reads_it(data_root: Path) -> None:
    data = opened(type="mnist", root=str(data_root / "mnist"), val_fraction=0.1)
    assert data.info.image_shape == (1, 28, 28)
    assert data.info.classes == tuple("0123456789")
    assert (len(data.split("train")), len(data.split("val")), len(data.split("test"))) == (
        54_000,
        6_000,
        10_000,
    )
    batch = data.split("test").batch(np.arange(4), 0, 0, False)
    assert batch["label"].tolist() == [7, 2, 1, 0]
    assert data.info.mean == pytest.approx((0.1307,), abs=3e-3)
    assert data.info.std == pytest.approx((0.3081,), abs=3e-3)


def test_cifar_as_parquet(data_root: Path) -> None:
    data = opened(type="parquet_images", train=[str(data_root / "cifar10" / "test.parquet")])
    assert data.info.image_shape == (3, 32, 32)
    assert data.info.classes[:3] == ("airplane", "automobile", "bird")
    assert len(data.split("train")) == 10_000
    assert (
        np.bincount(data.split("train").batch(np.arange(10_000), 0, 0, False)["label"]).tolist()
        == [1000] * 10
    )


def test_a_folder_of_images_resident_and_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder()
    data = opened(type="image_folder", root="pictures")
    batch = data.split("train").batch(np.arange(8), 0, 0, False)
    monkeypatch.setattr("bigmodel_cli.data.image.loading.RESIDENT_BYTES", 1)
    streamed = opened(type="image_folder", root="pictures")
    assert data.split("train").resident
    assert not streamed.split("train").resident
    again = streamed.split("train").batch(np.arange(8), 0, 0, False)
    assert torch.equal(batch["image"], again["image"])
    assert torch.equal(batch["label"], torch.tensor([0] * 4 + [1] * 4))
    info = data.info
    assert torch.equal(prepare_image(Path("pictures/dog/2.png"), info)[0], batch["image"][6])


def test_sizes_channels_and_splits() -> None:
    folder("set/train")
    folder("set/test", count=2)
    data = opened(type="image_folder", root="set", size=12, channels=1, val_fraction=0.25)
    assert data.info.image_shape == (1, 12, 12)
    assert {n: len(data.split(n)) for n in data.splits} == {"train": 6, "val": 2, "test": 4}
    grey = opened(type="digits", size=16, channels=3)
    assert grey.info.image_shape == (3, 16, 16)


def save(form: str) -> tuple[bytes, tuple[int, int]]:
    """An encoded image of that kind, and the (height, width) that it must have."""
    file = io.BytesIO()
    if form == "cmyk":
        Image.new("CMYK", (5, 4), (0, 255, 255, 0)).save(file, "JPEG", quality=95)
    elif form == "16-bit":
        Image.fromarray(np.full((4, 5), 257 * 100, np.uint16)).save(file, "PNG")
    elif form == "animated":
        frames = [Image.new("RGB", (5, 4), c) for c in ((200, 0, 0), (0, 200, 0))]
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    elif form == "palette":
        Image.new("RGB", (5, 4), (200, 0, 0)).quantize(4).save(file, "PNG")
    elif form == "transparent":
        Image.new("RGBA", (5, 4), (200, 0, 0, 0)).save(file, "PNG")
    else:
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        Image.new("RGB", (5, 4), (200, 0, 0)).save(file, "JPEG", exif=exif)
        return file.getvalue(), (5, 4)
    return file.getvalue(), (4, 5)


@pytest.mark.parametrize(
    ("form", "colour"),
    [("cmyk", (254, 0, 0)), ("16-bit", (100, 100, 100)), ("animated", (200, 0, 0)),
     ("palette", (200, 0, 0)),
     ("transparent", (0, 0, 0)), ("turned", (200, 0, 0))],
)  # fmt: skip
def test_pixel_formats_are_converted_as_documented(form: str, colour: tuple[int, int, int]) -> None:
    content, size = save(form)
    pixels = decode(content, form, 3, None)
    assert pixels.shape == (3, *size)
    assert np.abs(pixels.reshape(3, -1).mean(1) - colour).max() < 4


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole image"),
        (b"\x89PNG\r\n\x1a\n", "not a whole image"),
        ("half", "not a whole image"),
        (png(50_000, 50_000), "pixels; make it smaller"),
        (png(15_000, 10_000), "pixels; make it smaller"),
    ],
)
def test_images_that_cannot_be_decoded(
    content: Any, message: str, cnn_spec: Path, cli: Cli
) -> None:
    folder(count=200)
    bad = Path("pictures/cat/17.png")
    bad.write_bytes(bad.read_bytes()[:40] if content == "half" else content)
    words = [
        "pretrain",
        cnn_spec,
        "--set",
        "data={type: image_folder, root: pictures, val_fraction: 0}",
        "--set",
        "train.batch_size=8",
    ]
    result = cli(*words, "--out", "run")
    assert result.status == 3
    assert f"{bad}: " in result.err
    assert message in result.err
    assert not Path("run/checkpoints").exists()
    skipped = cli(*words, "--out", "run2", "--set", "data.on_bad=skip")
    assert skipped.status == 0, skipped.err
    assert (
        "warning: skipped 1 image that cannot be decoded, the first: pictures/cat/17.png"
        in skipped.err
    )
    assert "399 training samples" in skipped.err


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(labels: list[int], images: int | None = None) -> None:
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        count = len(labels) if images is None else images
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(np.zeros((count, 28, 28), np.uint8)))
        (raw / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(idx(np.array(labels, np.uint8)))
        )


@pytest.mark.parametrize(
    ("labels", "images", "message"),
    [
        ([0, 1, 10], None, "item 2 of the train split: label 10, and the classes are 0 to 9"),
        ([0, 1, 2], 2, "the train split has 2 images and 3 labels"),
        ([], None, "the train split has no images"),
    ],
)
def test_labels_that_do_not_fit(
    labels: list[int], images: int | None, message: str, cnn_spec: Path, cli: Cli
) -> None:
    write_mnist(labels, images)
    result = cli(
        "pretrain", cnn_spec, "--out", "run", "--set", "data.type=mnist", "--set", "data.root=data"
    )
    assert result.status == 3
    assert message in result.err
    assert not Path("run/checkpoints").exists()


def test_a_label_below_zero_in_parquet() -> None:
    import pyarrow
    import pyarrow.parquet as pq

    content, _ = save("palette")
    table = pyarrow.table({"image": [{"bytes": content, "path": None}] * 2, "label": [0, -1]})
    pq.write_table(table, "bad.parquet")
    with pytest.raises(
        DataError, match=r"bad.parquet: row 1: label -1, and the classes are 0 to 0"
    ):
        opened(type="parquet_images", train=["bad.parquet"])
    with pytest.raises(DataError, match=r"bad.parquet: .*columns picture, label"):
        opened(type="parquet_images", train=["bad.parquet"], image_column="picture")


def test_a_class_missing_in_an_image_split_is_reported() -> None:
    folder("set/train")
    folder("set/test", classes=("cat",))
    said: list[str] = []
    opened(said, type="image_folder", root="set")
    assert "warning: the test split has no image of class dog" in said


@pytest.mark.parametrize(
    "options", [{"type": "mnist"}, {"type": "cifar10"}, {"type": "image_folder", "root": "none"}]
)
def test_missing_data_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"(?s)set data.root"):
        opened(**options)
    Path("none").mkdir(exist_ok=True)
    if options["type"] == "image_folder":
        with pytest.raises(DataError, match="no folders of classes"):
            opened(**options)


def test_a_truncated_idx_file() -> None:
    write_mnist([1, 2, 3])
    file = Path("data/MNIST/raw/train-images-idx3-ubyte")
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match="2,347 bytes of content, and its header says 3 x 28 x 28"):
        opened(type="mnist", root="data")


def test_normalisation() -> None:
    info = DatasetInfo(image_shape=(3, 2, 2), mean=(0.5, 0.4, 0.3), std=(0.2, 0.1, 0.3))
    x = torch.rand(4, 3, 2, 2)
    from torchvision.transforms.v2.functional import normalize

    torch.testing.assert_close(normalise(x, info), normalize(x, [0.5, 0.4, 0.3], [0.2, 0.1, 0.3]))
    data = opened(type="digits")
    every = data.split("train").batch(np.arange(len(data.split("train"))), 0, 0, False)["image"]
    assert float(every.mean()) == pytest.approx(0, abs=1e-4)
    assert float(every.std()) == pytest.approx(1, abs=1e-3)
    plain = (
        opened(type="digits", normalize="none")
        .split("train")
        .batch(np.arange(9), 0, 0, False)["image"]
    )
    assert float(plain.min()) >= 0
    assert float(plain.max()) == 1
    with pytest.raises(DataError, match="give 1 mean and std values"):
        opened(type="digits", normalize={"mean": [0.5, 0.5], "std": [1.0, 1.0]})


def test_affine_equals_torchvisions() -> None:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import affine as theirs

    torch.manual_seed(0)
    images = torch.rand(6, 3, 20, 28)
    angle = torch.tensor([0.0, 30, -45, 10, 0, 90])
    moved = torch.tensor([[0.0, 0], [3, -2], [0, 5], [-4, 1], [2, 2], [0, 0]])
    scale = torch.tensor([1.0, 1.2, 0.8, 1.0, 0.5, 1.0])
    shear = torch.tensor([0.0, 10, -20, 0, 15, 0])
    ours = affine(images, angle, moved, scale, shear)
    for i in range(6):
        expected = theirs(
            images[i],
            float(angle[i]),
            moved[i].tolist(),
            float(scale[i]),
            [float(shear[i]), 0.0],
            InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(ours[i], expected, atol=2e-4, rtol=0)


def test_crops_flips_and_erasing() -> None:
    images = torch.rand(5, 2, 6, 7)
    u = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.5, 0.5], [0.0, 0.999], [0.3, 0.7]])
    cropped = RandomCropOptions(padding=2).apply(images, u)
    padded = torch.nn.functional.pad(images, [2] * 4)
    for i, (top, left) in enumerate([(0, 0), (4, 4), (2, 2), (0, 4), (1, 3)]):
        assert torch.equal(cropped[i], padded[i, :, top : top + 6, left : left + 7])
    flipped = RandomFlipOptions(p=0.5).apply(
        images, torch.tensor([[0.1], [0.6], [0.49], [0.5], [0.9]])
    )
    for i, turned in enumerate([True, False, True, False, False]):
        assert torch.equal(flipped[i], images[i].flip(-1) if turned else images[i])
    erased = RandomErasingOptions(p=1.0, scale=[0.3, 0.3], ratio=[1.0, 1.0]).apply(
        images + 1, torch.full((5, 5), 0.5)
    )
    gone = (erased == 0).all(1).float().mean((1, 2))
    assert bool(((gone > 0.15) & (gone < 0.45)).all())


@pytest.mark.parametrize(
    "options",
    [
        [RandomAffineOptions(degrees=20, translate=[0.2, 0.2])],
        [RandomCropOptions(), RandomFlipOptions(), RandomErasingOptions()],
        [
            V2Options(name="ColorJitter", args={"brightness": 0.5}),
            V2Options(name="TrivialAugmentWide"),
        ],
    ],
)
def test_augmentation_belongs_to_the_sample_not_to_the_batch(options: list[Any]) -> None:
    images, samples = torch.rand(8, 3, 16, 16), np.arange(100, 108)
    augmentation = Augmentation(options)
    state = torch.get_rng_state()
    together = augmentation(images, samples, 3, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(together, images)
    apart = torch.cat([augmentation(images[i : i + 1], samples[i : i + 1], 3, 0) for i in range(8)])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)
    assert not torch.equal(augmentation(images, samples, 4, 0), together)
    assert not torch.equal(augmentation(images, samples, 3, 1), together)


def test_unknown_transforms_are_refused() -> None:
    with pytest.raises(SpecError, match="has no 'ColourJitter'; did you mean ColorJitter"):
        Augmentation([V2Options(name="ColourJitter")])
    with pytest.raises(
        SpecError, match="ColorJitter has no such argument; did you mean brightness"
    ):
        Augmentation([V2Options(name="ColorJitter", args={"brightnes": 0.5})])
    with pytest.raises(SpecError, match=r"data.augment.0.args: ColorJitter"):
        Augmentation([V2Options(name="ColorJitter", args={"brightness": "much"})])
