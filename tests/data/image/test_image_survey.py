"""Channels, size and depth are those of all images; what is changed is said; the survey is made
once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import COLOUR, GREY_ALPHA, png, tiff
from PIL import Image
from test_images import opened

from bigmodel_cli.data.image.pixels import decode
from bigmodel_cli.data.image.sources import RawSplit
from bigmodel_cli.data.image.survey import Headers, choose_shape
from bigmodel_cli.errors import DataError

RNG = np.random.default_rng(0)


def put(name: str, content: bytes | np.ndarray) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        content = png(content, 8, COLOUR if content.ndim == 3 else 0)
    path.write_bytes(content)
    return path


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def first_image(data: Any) -> torch.Tensor:
    return data.split("train").batch(np.arange(1), 0, 0, False)["image"]


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_the_shape_of_images_is_not_taken_from_the_first_one_alone(source: str) -> None:
    images = [noise(10, 30), *[noise(6, 8, 3) for _ in range(9)]]
    paths = [put(f"set/a/{i}.png", x) for i, x in enumerate(images)]
    options: dict[str, Any] = {"type": "image_folder", "root": "set"}
    if source == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        pq.write_table(
            pyarrow.table({"image": [p.read_bytes() for p in paths], "label": [0] * 10}),
            "a.parquet",
        )
        options = {"type": "parquet_images", "train": ["a.parquet"]}
    said: list[str] = []
    data = opened(said, normalize="none", **options)
    assert data.info.image_shape == (3, 6, 8)
    assert (
        "warning: 1 of 10 images of the train split are resized to 6 x 8 (the size of most in the"
        " training split; set data.size to choose another), 1 of them stretched; height x width: 6"
        " x 8 (9), 10 x 30 (1)" in said
    )
    assert (
        "images of the train split: 9 colour, 1 grey; all are read as colour (3 channels); set"
        " data.channels to choose" in said
    )
    batch = data.split("train").batch(np.arange(10), 0, 0, False)["image"]
    for i in range(1, 10):
        assert np.array_equal((batch[i] * 255).round().numpy(), images[i].transpose(2, 0, 1))


def test_images_of_one_size_are_reported_only_where_they_are_resized() -> None:
    for i in range(3):
        put(f"set/a/{i}.png", noise(6, 8))
    said: list[str] = []
    assert opened(said, type="image_folder", root="set").info.image_shape == (1, 6, 8)
    assert [line for line in said if "decoding" not in line] == []
    again: list[str] = []
    assert opened(again, type="image_folder", root="set", size=5).info.image_shape == (1, 5, 5)
    assert (
        "3 of 3 images of the train split are resized to 5 x 5 (data.size), 3 of them stretched;"
        " height x width: 6 x 8 (3)" in again
    )


def headers(sizes: list[tuple[int, int]], grey: bool = True) -> RawSplit:
    kinds = np.zeros(len(sizes), np.int64)
    own = Headers(np.array(sizes), kinds, ("grey" if grey else "colour",), (grey,))
    return RawSplit(kinds, "", encoded=[b""] * len(sizes), names=[""] * len(sizes), headers=own)


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([(4, 5), (9, 9), (4, 5)], (4, 5)),
        ([(4, 5), (9, 9)], (9, 9)),  # as frequent: the larger
        ([(2, 18), (6, 6), (18, 2), (4, 9)], (18, 2)),  # as large: the higher
    ],
)
def test_images_take_the_size_of_the_majority(
    sizes: list[tuple[int, int]], chosen: tuple[int, int]
) -> None:
    for order in (sizes, sizes[::-1]):
        assert choose_shape({"train": headers(order)}, None, None, None, None, [].append) == (
            1,
            *chosen,
        )


def test_other_splits_are_brought_to_the_training_splits_shape() -> None:
    said: list[str] = []
    splits = {"test": headers([(7, 7)] * 4, grey=False), "train": headers([(6, 8)] * 5)}
    assert choose_shape(splits, None, None, None, None, said.append) == (1, 6, 8)
    assert len(said) == 2
    assert said[0].startswith("warning: 4 of 4 images of the test split are resized to 6 x 8")
    assert (
        said[1]
        == "warning: images of the test split: 4 colour; all are read as grey (1 channel); set"
        " data.channels to choose"
    )
    # a checkpoint's shape stands, whatever the data is, and also where it has no training split
    known: list[str] = []
    assert choose_shape({"test": splits["test"]}, None, None, None, (1, 3, 5), known.append) == (
        1,
        3,
        5,
    )
    assert "resized to 3 x 5 (as the checkpoint's are), 4 of them stretched" in known[0]


def test_images_given_as_arrays_keep_their_shape() -> None:
    split = {"train": RawSplit(np.zeros(2, np.int64), "", noise(2, 3, 9, 7))}
    assert choose_shape(split, None, None, None, None, [].append) == (3, 9, 7)
    assert choose_shape(split, 4, 1, None, None, [].append) == (1, 4, 4)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_16_bit_images_with_few_used_bits_are_reported(bits: int) -> None:
    for i in range(4):
        values = RNG.integers(0, 2**bits, (6, 6), np.uint16)
        values[0, 0] = 2**bits - 1
        put(f"set/a/{i}.png", png(values, 16))
    for _ in range(2):  # the second time from the cache
        said: list[str] = []
        data = opened(said, type="image_folder", root="set", normalize="none")
        deep = [line for line in said if "of 16 bits" in line]
        assert (
            "images of the train split: 4 16-bit grey; all are read as grey (1 channel); white is"
            " 65,535 in those of 16-bit grey" in said
        )
        assert bool(deep) == (bits < 16)
        if deep:
            assert (
                "4 grey images of 16 bits in the train split: the brightest value in 4 of them"
                f" is {2**bits - 1:,}" in deep[0]
            )
            assert f"set data.white_level: {2**bits - 1} if it is not" in deep[0]
    expected = values / 65_535
    np.testing.assert_allclose(
        data.split("train").batch(np.array([3]), 0, 0, False)["image"][0, 0],
        expected,
        atol=0.51 / 255,
    )
    told: list[str] = []
    scaled = opened(
        told, type="image_folder", root="set", normalize="none", white_level=float(2**bits - 1)
    )
    assert not [line for line in told if "of 16 bits" in line]
    assert scaled.info.white_level == 2**bits - 1
    assert scaled.fingerprint != data.fingerprint
    np.testing.assert_allclose(
        scaled.split("train").batch(np.array([3]), 0, 0, False)["image"][0, 0],
        values / (2**bits - 1),
        atol=0.51 / 255,
    )


@pytest.mark.parametrize("skip", [False, True])
def test_pixels_beyond_white_are_found_when_the_data_is_opened(
    skip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # else decoding would find them
    monkeypatch.setattr("bigmodel_cli.data.image.loading.RESIDENT_BYTES", 1)
    for i in range(3):
        put(f"set/a/{i}.tif", tiff(RNG.uniform(0, 1, (5, 5)).astype(np.float32)))
    put("set/a/3.tif", tiff(np.full((5, 5), 200, np.float32)))
    options: dict[str, Any] = {"type": "image_folder", "root": "set"}
    if not skip:
        with pytest.raises(
            DataError,
            match=r"set/a/3.tif: floating-point grey with pixels from 200 to 200, and white is 1",
        ):
            opened(**options)
        return
    said: list[str] = []
    data = opened(said, on_bad="skip", **options)
    assert len(data.split("train")) == 3
    assert any(
        "skipped 1 image that cannot be decoded, the first: " in line
        and "set/a/3.tif: floating" in line
        for line in said
    )
    assert opened(on_bad="skip", white_level=200.0, **options).info.image_shape == (1, 5, 5)


def test_skipped_images_are_left_out_with_their_labels() -> None:
    for label in ("a", "b", "c"):
        for i in range(3):
            put(f"set/{label}/{i}.png", b"junk" if label == "b" or i == 1 else noise(4, 4))
    said: list[str] = []
    data = opened(said, type="image_folder", root="set", on_bad="skip")
    assert data.split("train").batch(np.arange(4), 0, 0, False)["label"].tolist() == [0, 0, 2, 2]
    assert len(data.split("train")) == 4
    # counted after the bad are gone
    assert "warning: the train split has no image of class b" in said
    for path in Path("set").rglob("*.png"):
        path.write_bytes(b"none")
    with pytest.raises(
        DataError,
        match=r"none of 9 images can be decoded, the first: .*set/a/0.png: not a whole image",
    ):
        opened(type="image_folder", root="set", on_bad="skip")


def test_the_survey_is_made_once_and_again_when_it_is_damaged(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        put(f"once/a/{i}.png", noise(6, 8, 3))
    before = set((cache / "bigmodel" / "surveys").glob("*/content"))
    info = opened(type="image_folder", root="once").info
    (kept,) = set((cache / "bigmodel" / "surveys").glob("*/content")) - before
    content = kept.read_bytes()
    calls: list[str] = []

    def counted(image: Any, name: str) -> Any:
        calls.append(name)
        return read(image, name)

    from bigmodel_cli.data.image import survey as image_survey

    read = image_survey.read_header
    monkeypatch.setattr(image_survey, "read_header", counted)
    assert opened(type="image_folder", root="once").info == info
    assert not calls
    changed = bytes(b ^ 1 if i % 2 else b for i, b in enumerate(content))
    for damaged in (b"", content[: len(content) // 2], content.replace(b"8", b"9"), changed):
        kept.write_bytes(damaged)
        assert opened(type="image_folder", root="once").info == info
        assert len(calls) == 3
        calls.clear()
        assert kept.read_bytes() == content


@pytest.mark.parametrize("channels", [1, 3])
def test_streamed_and_resident_give_the_same_pixels(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [
        noise(7, 9),
        noise(5, 4, 3),
        png(noise(9, 9, 2), 8, GREY_ALPHA),
        png(RNG.integers(0, 65_536, (6, 5)), 16),
    ]
    for i in range(8):
        put(f"set/a/{i}.png", kinds[i % 4])
    Image.fromarray(noise(8, 8, 4), "CMYK").save("set/a/8.jpg")
    options: dict[str, Any] = {
        "type": "image_folder",
        "root": "set",
        "size": 6,
        "channels": channels,
        "normalize": "none",
    }
    resident = opened(**options)
    monkeypatch.setattr("bigmodel_cli.data.image.loading.RESIDENT_BYTES", 1)
    streamed = opened(**options)
    assert (resident.split("train").resident, streamed.split("train").resident) == (True, False)
    one, other = (
        d.split("train").batch(np.arange(9), 0, 0, False)["image"] for d in (resident, streamed)
    )
    assert torch.equal(one, other)
    names = sorted(str(p) for p in Path("set").rglob("*.*"))
    for i, name in enumerate(names):
        assert np.array_equal(
            (one[i] * 255).round().numpy(), decode(Path(name), name, channels, (6, 6))
        )


def test_digits_keep_their_sixteen_steps() -> None:
    from sklearn.datasets import load_digits

    values = np.unique(
        opened(type="digits", normalize="none")
        .split("train")
        .batch(np.arange(900), 0, 0, False)["image"]
    )
    np.testing.assert_allclose(values, np.unique(load_digits().images) / 16, atol=0.501 / 255)
