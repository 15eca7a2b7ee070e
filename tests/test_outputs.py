"""Files that commands write: regular ones at once, devices, FIFOs, links and descriptors as what
they are.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Result
from PIL import Image

from bigmodel_cli.errors import ResourceError
from bigmodel_cli.outputs import check_output, write_output
from bigmodel_cli.pictures import check_picture, new_figure, save_figure

Cli = Callable[..., Result]


def test_a_regular_file_is_replaced_whole_and_keeps_its_mode() -> None:
    """Row 82. What fails half-way leaves the old file, and no draft."""
    path = Path("a.jsonl")
    write_output(path, [b"one\n", b"two\n"])
    assert path.read_bytes() == b"one\ntwo\n"
    path.chmod(0o640)
    write_output(path, [b"three\n"])
    assert path.read_bytes() == b"three\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def broken() -> Iterator[bytes]:
        yield b"four"
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match=r"a.jsonl: cannot be written: No space left on device"):
        write_output(path, broken())
    assert path.read_bytes() == b"three\n"
    assert os.listdir() == ["a.jsonl"]


def test_links_stay_and_their_targets_are_replaced() -> None:
    """Row 82: relative, chained and dangling links."""
    Path("d").mkdir()
    Path("d/real").write_bytes(b"old")
    os.symlink("real", "d/inner")
    os.symlink("d/inner", "link")
    os.symlink("d/new", "dangling")
    for name in ("link", "dangling"):
        check_output(Path(name), "--out")
        write_output(Path(name), [b"new"])
        assert os.path.islink(name)
        assert Path(name).read_bytes() == b"new"
    assert Path("d/real").read_bytes() == Path("d/new").read_bytes() == b"new"
    assert os.path.islink("d/inner")
    os.symlink("loop", "loop")
    with pytest.raises(ResourceError, match="leads to itself"):
        check_output(Path("loop"), "--out")


def test_a_fifo_and_a_device_are_written_through() -> None:
    """Row 82."""
    os.mkfifo("fifo")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(Path("fifo").read_bytes()))
    reader.start()
    check_output(Path("fifo"), "--out")
    write_output(Path("fifo"), [b"one", b"two"])
    reader.join(10)
    assert got == [b"onetwo"]
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)
    # a link to the device: were it replaced, only the link would be harmed
    os.symlink("/dev/null", "null")
    check_output(Path("null"), "--out")
    write_output(Path("null"), [b"gone"])
    assert os.readlink("null") == "/dev/null"
    assert stat.S_ISCHR(os.stat("null").st_mode)


def test_an_open_file_descriptor_is_written_at_its_position() -> None:
    """Row 82: /dev/stdout that is a file is neither replaced nor cut; what is printed before and
    after stays.
    """
    code = (
        "import sys; from pathlib import Path; from bigmodel_cli.outputs import"
        " write_output\nprint('before', flush=True); write_output(Path('/dev/stdout'),"
        " [b'samples\\n']); print('after')"
    )
    with open("out", "wb") as file:
        subprocess.run(
            [sys.executable, "-c", code],
            stdout=file,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert Path("out").read_text() == "before\nsamples\nafter\n"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(cli: Cli) -> None:
    """Row 82: a folder, a missing folder, a file for a folder, no permission."""
    Path("folder.png").mkdir()
    Path("file").write_text("")
    cases = {
        "folder.png": "a folder; name a file",
        "none/a.png": "does not exist; make it",
        "file/a.png": "Not a directory",
    }
    for name, message in cases.items():
        with pytest.raises(ResourceError, match=rf"--out: {name}: .*{message}"):
            check_picture(Path(name), "--out")
    if os.geteuid():  # root may write everywhere
        Path("shut").mkdir(mode=0o555)
        with pytest.raises(ResourceError, match="Permission denied"):
            check_output(Path("shut/a"), "--out")
    # The checkpoint is not even looked for.
    for option in ("--predictions", "--confusion"):
        result = cli("eval", "no_run", option, "none/a.png")
        assert (result.status, result.err) == (
            5,
            (
                f"bigmodel: {option}: none/a.png: its folder does not exist; make it, or name"
                " another file\n"
            ),
        )


def test_pictures_have_the_format_that_their_name_says_else_png(cli: Cli) -> None:
    """Row 82. matplotlib by itself would add an ending to a name, and ends with a traceback at one
    that it does not know.
    """
    figure = new_figure((1, 1))
    for name, form in (("a.png", "PNG"), ("a", "PNG"), ("a.JPG", "JPEG")):
        check_picture(Path(name), "--out")
        save_figure(figure, Path(name), 50)
        assert Image.open(name).format == form
    result = cli("eval", "no_run", "--confusion", "a.xyz")
    assert result.status == 2
    assert "--confusion: a.xyz: pictures are png, pdf" in result.err


def test_init_writes_through_a_fifo_and_never_over_a_file(cli: Cli) -> None:
    """Row 82."""
    os.mkfifo("pipe.yaml")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(Path("pipe.yaml").read_bytes()))
    reader.start()
    assert cli("init", "pipe.yaml").status == 0
    reader.join(10)
    assert b"type: decoder" in got[0]
    assert stat.S_ISFIFO(os.stat("pipe.yaml").st_mode)
    Path("mine.yaml").write_text("mine")
    os.symlink("nowhere", "link.yaml")
    for name, status in (("mine", 2), ("link", 2), ("", 2), ("a/", 2), ("none/a", 5)):
        result = cli("init", name)
        assert (result.status, result.err.count("\n")) == (status, 1)
    assert Path("mine.yaml").read_text() == "mine"
    assert not Path("nowhere").exists()
