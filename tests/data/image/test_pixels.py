"""Every kind of pixel against what its format's specification says it means, written by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, PALETTE, chunk, png, tiff
from PIL import Image

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.image.files import open_image, read_header
from bigmodel_cli.data.image.pixels import decode, prepare_image
from bigmodel_cli.errors import DataError

RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 65_536, (5, 7), np.uint16)
WIDE[0, :3] = (0, 65_535, 257 * 100)
BYTES = RNG.integers(0, 256, (5, 7, 3), np.uint8)


def eight(content: bytes, channels: int = 1, white: float | None = None) -> np.ndarray:
    """(H, W) or (H, W, 3) float, as it was decoded."""
    pixels = decode(content, "a.file", channels, None, white).astype(np.float64)
    return pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)


def grey_of(colour: np.ndarray) -> np.ndarray:
    """ITU-R BT.601."""
    return colour @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0038])  # the last: nothing above 255
@pytest.mark.parametrize("form", ["png", "tiff <", "tiff >", "pgm"])
def test_16_bits_are_scaled_by_the_files_type(form: str, scale: float) -> None:
    values = (WIDE * scale).astype(np.uint16)
    content = {
        "png": lambda: png(values, 16),
        "tiff <": lambda: tiff(values),
        "tiff >": lambda: tiff(values, order=">"),
        "pgm": lambda: b"P5 7 5 65535\n" + values.astype(">u2").tobytes(),
    }[form]()
    np.testing.assert_allclose(eight(content), values / 65_535 * 255, atol=0.501)
    assert np.array_equal(eight(content, 3), np.repeat(eight(content)[:, :, None], 3, 2))


def test_pixels_of_12_bits_in_16_bit_images() -> None:
    values = (WIDE >> 4).astype(np.uint16)
    for content in (png(values, 16), tiff(values), tiff(values, tags={281: int(values.max())})):
        np.testing.assert_allclose(eight(content, white=4095), values / 4095 * 255, atol=0.501)
        np.testing.assert_allclose(eight(content), values / 65_535 * 255, atol=0.501)
        with pytest.raises(
            DataError, match=r"a.file: 16-bit grey with pixels from 0 to 4095, and white is 1023"
        ):
            eight(content, white=1023)
    np.testing.assert_allclose(  # this file says what is white
        eight(b"P5 7 5 4095\n" + values.astype(">u2").tobytes()), values / 4095 * 255, atol=0.51
    )
    with pytest.raises(DataError, match=r"16-bit colour only the upper eight bits are read"):
        eight(png(np.stack([values] * 3, 2), 16, COLOUR), 3, white=4095)


@pytest.mark.parametrize("order", ["<", ">"])
def test_floating_point_pixels_are_black_at_0_and_white_at_1(order: str) -> None:
    values = RNG.uniform(0, 1, (4, 3)).astype(np.float32)
    np.testing.assert_allclose(eight(tiff(values, order=order)), values * 255, atol=0.501)
    dim = values / 100
    np.testing.assert_allclose(eight(tiff(dim, order=order)), dim * 255, atol=0.501)
    rounded = np.array([[-1e-7, 1 + 1e-6]], np.float32)
    assert eight(tiff(rounded, order=order)).tolist() == [[0, 255]]
    np.testing.assert_allclose(
        eight(tiff(values * 255, order=order), white=255), values * 255, atol=0.501
    )
    for bad in (values * 255, values - 0.5, values * np.float32(np.nan)):
        with pytest.raises(
            DataError, match=r"a.file: floating-point grey with pixels from .* set data.white_level"
        ):
            eight(tiff(bad, order=order))
    pfm = b"Pf\n3 4\n-1.0\n" + values[::-1].tobytes()
    np.testing.assert_allclose(eight(pfm), values * 255, atol=0.501)


@pytest.mark.parametrize("kind", [np.int32, np.int16])
def test_integers_without_a_white_of_their_own(kind: type) -> None:
    values = RNG.integers(0, 10_000, (4, 3)).astype(kind)
    with pytest.raises(
        DataError,
        match=r"a.file: signed \d\d-bit integer grey, which does not say what value is white",
    ):
        eight(tiff(values))
    np.testing.assert_allclose(eight(tiff(values), white=10_000), values / 10_000 * 255, atol=0.501)
    with pytest.raises(DataError, match="pixels from -5 to"):
        eight(tiff(values - values.min() - kind(5)), white=20_000)
    with pytest.raises(DataError, match=r"a.file: signed integers of 8 bits"):
        eight(tiff(np.array([[-1, 5]], np.int8)))


def test_grey_images_with_white_as_zero_are_inverted() -> None:
    for values, white in (
        (BYTES[:, :, 0], 255),
        (WIDE, 65_535),
        (RNG.uniform(0, 1, (3, 4)).astype(np.float32), 1),
    ):
        np.testing.assert_allclose(
            eight(tiff(values, photometric=0)), 255 - values / white * 255, atol=0.501
        )


def test_images_of_1_to_4_bits_are_scaled_to_white() -> None:
    for bits in (1, 2, 4):
        values = RNG.integers(0, 2**bits, (3, 11), np.uint8)
        assert np.array_equal(eight(png(values, bits)), values * (255 // (2**bits - 1)))


def test_colour_of_8_and_16_bits() -> None:
    assert np.array_equal(eight(png(BYTES, 8, COLOUR), 3), BYTES)
    assert np.array_equal(eight(tiff(BYTES, photometric=2), 3), BYTES)
    np.testing.assert_allclose(eight(png(BYTES, 8, COLOUR)), grey_of(BYTES), atol=0.51)
    wide = RNG.integers(0, 65_536, (5, 7, 3), np.uint16)
    for content in (
        png(wide, 16, COLOUR),
        tiff(wide, photometric=2),
        tiff(wide, photometric=2, order=">"),
    ):
        assert np.array_equal(eight(content, 3), wide >> 8)


@pytest.mark.parametrize("bits", [8, 16])
def test_transparency_is_laid_on_black(bits: int) -> None:
    top = 2**bits - 1
    alpha = RNG.integers(0, top + 1, (5, 7, 1))
    alpha[0, :2] = [[0], [top]]
    grey, colour = RNG.integers(0, top + 1, (5, 7, 1)), RNG.integers(0, top + 1, (5, 7, 3))
    expected = grey * alpha / top**2 * 255
    content = png(np.concatenate((grey, alpha), 2), bits, GREY_ALPHA)
    np.testing.assert_allclose(eight(content), expected[:, :, 0], atol=2)
    np.testing.assert_allclose(eight(content, 3), np.repeat(expected, 3, 2), atol=2)
    content = png(np.concatenate((colour, alpha), 2), bits, COLOUR_ALPHA)
    np.testing.assert_allclose(eight(content, 3), colour * alpha / top**2 * 255, atol=2)


def test_palettes_and_transparent_values() -> None:
    palette = RNG.integers(0, 256, (7, 3), np.uint8)
    values = RNG.integers(0, 7, (4, 9), np.uint8)
    table = chunk(b"PLTE", palette.tobytes())
    assert np.array_equal(eight(png(values, 8, PALETTE, table), 3), palette[values])
    alpha = np.array([0, 255, 128, 77], np.uint8)
    clear = eight(png(values, 8, PALETTE, table + chunk(b"tRNS", alpha.tobytes())), 3)
    opaque = np.concatenate((alpha, np.full(3, 255, np.uint8)))[values][:, :, None] / 255
    np.testing.assert_allclose(clear, palette[values] * opaque, atol=1)
    for bits in (8, 16):
        grey = np.array([[3, 9, 3, 2**bits - 1]])
        content = png(grey, bits, GREY, chunk(b"tRNS", b"\xff\xff" if bits == 16 else b"\0\xff"))
        np.testing.assert_allclose(
            eight(content), grey * (grey < 2**bits - 1) / (2**bits - 1) * 255, atol=0.501
        )


def test_cmyk_images_are_converted_to_rgb() -> None:
    ink = RNG.integers(0, 256, (5, 7, 4), np.uint8)
    expected = (255.0 - ink[:, :, :3]) * (255 - ink[:, :, 3:]) / 255
    np.testing.assert_allclose(eight(tiff(ink, photometric=5), 3), expected, atol=1)
    # Adobe's JPEG keeps CMYK inverted; flat colours, which JPEG leaves alone
    for colour in ((0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255), (10, 200, 30, 40)):
        file = io.BytesIO()
        Image.new("CMYK", (16, 16), colour).save(file, "JPEG", quality=100)
        assert b"Adobe" in file.getvalue()
        c, m, y, k = colour
        expected = np.array([(255 - v) * (255 - k) / 255 for v in (c, m, y)])
        np.testing.assert_allclose(eight(file.getvalue(), 3)[3, 4], expected, atol=2)


def test_lab_by_the_formulas_of_the_cie() -> None:
    for lab in ((60, 20, -30), (80, -20, 40), (30, 5, 5)):
        values = np.array([[[round(lab[0] * 2.55), lab[1] % 256, lab[2] % 256]] * 3] * 2, np.uint8)
        fy = (lab[0] + 16) / 116
        f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
        # D50
        xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (
            0.9642,
            1,
            0.8249,
        )
        to_rgb = [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
        linear = np.clip(np.array(to_rgb) @ xyz, 0, 1)
        rgb = (
            np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
        )
        np.testing.assert_allclose(eight(tiff(values, photometric=8), 3)[0, 0], rgb, atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_turns_pixels_and_the_headers_size(form: str, orientation: int) -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :8] = (200, 0, 0)
    image[:4, 8:] = (0, 200, 0)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(image).save(
        file, form, exif=exif, **({"quality": 100} if form in ("JPEG", "WEBP") else {})
    )
    turned = {  # where row 0 and column 0 of what is kept belong, by the EXIF standard
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: image.swapaxes(0, 1), 6: image[::-1].swapaxes(0, 1), 7: image[::-1, ::-1].swapaxes(0, 1),
        8: image[:, ::-1].swapaxes(0, 1),
    }[orientation]  # fmt: skip
    pixels = eight(file.getvalue(), 3)
    assert pixels.shape == turned.shape
    # inside the fields: codecs blur where they meet
    height, width = turned.shape[:2]
    for y in (1, height - 2):
        for x in (1, width - 2):
            np.testing.assert_allclose(pixels[y, x], turned[y, x], atol=12)
    with open_image(file.getvalue(), "a") as opened:
        assert read_header(opened, "a").size == turned.shape[:2]


def test_16_bits_are_turned_too() -> None:
    values = np.array([[0, 257], [514, 771], [1028, 65_535]], np.uint16)
    for order in ("<", ">"):
        assert eight(tiff(values, order=order, tags={274: 6})).tolist() == [[4, 2, 0], [255, 3, 1]]


def test_resizing_weighs_every_pixel_that_shrinks_into_one() -> None:
    values = RNG.integers(0, 256, (12, 12), np.uint8)
    small = decode(png(values), "a", 1, (3, 4))[0]
    triangle = lambda away, width: np.clip(1 - np.abs(away) / width, 0, None)  # noqa: E731

    def weights(many: int, few: int) -> np.ndarray:
        ratio = many / few
        centre = (np.arange(few) + 0.5) * ratio
        own = triangle(np.arange(many)[None] + 0.5 - centre[:, None], ratio)
        return own / own.sum(1, keepdims=True)

    expected = weights(12, 3) @ values @ weights(12, 4).T
    np.testing.assert_allclose(small, expected, atol=1.01)


def test_predict_reads_what_training_reads() -> None:
    values = RNG.integers(0, 4096, (6, 6), np.uint16)
    Path("a.png").write_bytes(png(values, 16))
    info = DatasetInfo(image_shape=(3, 6, 6), white_level=4095)
    image = prepare_image(Path("a.png"), info)
    assert torch.allclose(image[0, 1], torch.from_numpy(values / 4095).float(), atol=0.51 / 255)


@pytest.mark.parametrize("kind", ["u1", "u2", "f4", "rgb", "rgb16", "white"])
def test_tiff_as_tifffile_reads_it(kind: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    colour = kind.startswith("rgb")
    form = {"rgb": "u1", "rgb16": "u2", "white": "u2"}.get(kind, kind)
    values = RNG.uniform(0, 1, (9, 5, 3) if colour else (9, 5))
    values = values.astype("f4") if form == "f4" else (values * np.iinfo(form).max).astype(form)
    photometric = "rgb" if colour else "miniswhite" if kind == "white" else "minisblack"
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric)
    own = tifffile.imread(io.BytesIO(file.getvalue())).astype(np.float64)
    white = 1.0 if form == "f4" else np.iinfo(form).max
    own = white - own if kind == "white" else own
    np.testing.assert_allclose(
        eight(file.getvalue(), 3 if colour else 1), own / white * 255, atol=1 if colour else 0.501
    )
