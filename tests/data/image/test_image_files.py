"""Which formats are opened at all, and what headers say."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import COLOUR, GREY_ALPHA, PALETTE, chunk, png, tiff
from PIL import Image
from test_images import folder, opened

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import prepare_image
from bigmodel_cli.data.image.files import ENDINGS, FORMATS, open_image, read_header
from bigmodel_cli.data.image.pixels import decode
from bigmodel_cli.errors import DataError

Cli = Callable[..., Result]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"


def trap(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called gs that leaves a file behind when it is started."""
    program, canary = Path("bin/gs").absolute(), Path("started").absolute()
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {canary}\necho 9.99\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return canary


@pytest.mark.parametrize("content", [EPS, PDF, b"\xff\xff" + EPS], ids=["eps", "pdf", "junk"])
def test_no_format_that_starts_a_program_is_opened(
    content: bytes, cnn_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = trap(monkeypatch)
    if content == EPS:
        with contextlib.suppress(OSError), Image.open(io.BytesIO(content)) as image:
            image.load()
        assert canary.exists()  # Pillow by itself starts it
        canary.unlink()
    folder(count=9)
    bad = Path("pictures/cat/7.png")
    bad.write_bytes(content)
    words = [
        "--set",
        "data={type: image_folder, root: pictures}",
        "--set",
        "train.batch_size=8",
        "--set",
        "train.steps=1",
    ]
    result = cli("pretrain", cnn_spec, *words, "--out", "run")
    assert result.status == 3
    assert f"{bad}: not a whole image of a format that is read (PNG, JPEG, " in result.err
    assert not Path("run/checkpoints").exists()
    with pytest.raises(DataError, match=r"7.png: not a whole image of a format"):
        prepare_image(bad, DatasetInfo(image_shape=(3, 6, 8)))
    with pytest.raises(DataError, match="not a whole image of a format"):
        decode(content, "row 3", 3, None)
    assert not canary.exists()


STARTS = {
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.system",
    "os.fork",
    "os.forkpty",
    "os.startfile",
    "pty.spawn",
}


@pytest.fixture
def started() -> Iterator[list[str]]:
    """The programs that this process starts meanwhile, as the interpreter's own audit tells."""
    found: list[str] = []
    on = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if on and event in STARTS:
            found.append(f"{event} {arguments!r}")

    sys.addaudithook(hook)  # a hook cannot be taken away
    yield found
    on.clear()


def test_no_command_starts_a_program_for_an_image(
    cnn_spec: Path, cli: Cli, started: list[str]
) -> None:
    """Row 80: EPS and PDF under the name of a PNG, in folders, columns, predict and attend."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder(count=9)
    of = [
        "--set",
        "data={type: image_folder, root: pictures}",
        "--set",
        "train.batch_size=4",
        "--set",
        "train.steps=1",
    ]
    assert cli("pretrain", cnn_spec, *of, "--out", "run").status == 0
    for name, content in (("eps.png", EPS), ("pdf.png", PDF)):
        Path(name).write_bytes(content)
        for command in ("predict", "attend"):
            assert cli(command, "run", name).status == 3
        Path("pictures/cat", name).write_bytes(content)
        rows = pa.table({"image": [content] * 20, "label": [0, 1] * 10})
        pq.write_table(rows, "rows.parquet")
        assert cli("pretrain", cnn_spec, *of, "--dry-run").status == 3
        columns = ["--set", "data={type: parquet_images, train: [rows.parquet]}"]
        result = cli("pretrain", cnn_spec, *columns, "--dry-run")
        assert (
            result.status,
            "not a whole image of a format that is read (PNG, JPEG, " in result.err,
        ) == (3, True)
        Path("pictures/cat", name).unlink()
    assert started == []


def test_the_list_holds_no_format_that_runs_anything() -> None:
    import PIL

    here = Path(PIL.__file__).parent
    starting = {"EPS", "WMF", "MPEG", "HDF5", "BUFR", "GRIB", "PDF"}
    assert not starting & set(FORMATS)
    assert "subprocess" in (here / "EpsImagePlugin.py").read_text()
    registered = Image.registered_extensions()
    for ending in ENDINGS:
        assert registered.get(ending, "PPM" if ending == ".pfm" else "") in {
            *FORMATS,
            "MPO",
        }, ending


def test_files_of_other_formats_are_left_out_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    folder(count=3)
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/c.eps", "dog/notes.txt"):
        Path("pictures", name).write_bytes(EPS)
    Path("pictures/cat/0.png").rename("pictures/cat/0.PNG")
    data = opened(type="image_folder", root="pictures")
    assert len(data.split("train")) == 6
    said = capfd.readouterr().err
    assert (
        "warning: 3 files are left out, in formats that are not read (2 .heic, 1 .eps), the"
        " first: " in said
    )


GREYS = np.arange(8, dtype=np.uint8).reshape(2, 4)


@pytest.mark.parametrize(
    ("content", "name", "grey", "depth"),
    [
        (png(GREYS), "grey", True, "8"),
        (png(GREYS % 2, 1), "1-bit grey", True, "8"),
        (png(GREYS, 16), "16-bit grey", True, "16"),
        (png(np.stack([GREYS] * 2, 2), 8, GREY_ALPHA), "grey with transparency", True, "8"),
        (png(np.stack([GREYS] * 2, 2), 16, GREY_ALPHA), "16-bit grey with transparency", True, "8"),
        (png(np.stack([GREYS] * 3, 2), 8, COLOUR), "colour", False, "8"),
        (png(np.stack([GREYS] * 3, 2), 16, COLOUR), "16-bit colour", False, "8"),
        (png(GREYS, 8, PALETTE, chunk(b"PLTE", bytes(range(24)))), "palette", False, "8"),
        (
            png(
                GREYS, 8, PALETTE, chunk(b"PLTE", np.arange(8).repeat(3).astype(np.uint8).tobytes())
            ),
            "palette",
            True,
            "8",
        ),
        (tiff(GREYS.astype(np.uint16), order=">"), "16-bit grey", True, "16"),
        (tiff(GREYS.astype(np.float32)), "floating-point grey", True, "float"),
        (tiff(GREYS.astype(np.int32)), "signed 32-bit integer grey", True, "integer"),
        (tiff(np.stack([GREYS] * 4, 2), photometric=5), "CMYK", False, "8"),
        (
            tiff(np.stack([GREYS] * 3, 2).astype(np.uint16), photometric=2),
            "16-bit colour",
            False,
            "8",
        ),
    ],
    ids=range(14),
)
def test_image_headers_give_size_format_and_depth(
    content: bytes, name: str, grey: bool, depth: str
) -> None:
    with open_image(content, "a") as image:
        header = read_header(image, "a")
    assert (header.size, header.name, header.grey, header.depth) == ((2, 4), name, grey, depth)


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)).save(
        file, form
    )
    return file.getvalue()


WHOLE = {
    form: encoded(form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
}


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.floats(0, 1),
    st.binary(min_size=1, max_size=6),
    st.floats(0.2, 1),
)
def test_damage_is_a_data_error_or_an_image(
    form: str, place: float, change: bytes, kept: float
) -> None:
    content: Any = bytearray(WHOLE[form])
    at = int(place**3 * len(content))  # mostly in the header
    content[at : at + len(change)] = change
    with contextlib.suppress(DataError):
        assert decode(bytes(content[: int(kept * len(content)) + 1]), "a", 3, (4, 4)).shape == (
            3,
            4,
            4,
        )
