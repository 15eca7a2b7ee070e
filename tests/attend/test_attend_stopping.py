"""Signals, full disks, damaged checkpoints and closed streams while `attend` writes: what was there
stays as it was, and nothing half written is left.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Result
from test_streams import sh

from bigmodel_cli.__main__ import run

Cli = Callable[..., Result]
FORMS = ("png", "pdf", "svg", "html", "jsonl", "safetensors")
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def option(form: str) -> str:
    """The option that writes such a file."""
    return "--data" if form in ("jsonl", "safetensors") else f"--{form}"


@pytest.fixture
def heeded() -> Iterator[None]:
    """Signals as in a shell, also where the tests run under nohup or in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def left(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, hidden files too."""
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(
    ("number", "place"),
    [(signal.SIGINT, "fsync"), (signal.SIGTERM, "replace"), (signal.SIGHUP, "fsync")],
    ids=["int", "term", "hup"],
)
def test_a_signal_while_a_file_is_written_leaves_the_old_one(
    number: signal.Signals,
    place: str,
    base: Path,
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 7: in the middle of the draft, and when it is complete but has not taken its name."""

    def came(*arguments: Any) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not heeded")

    folder = tmp_path / "out"
    folder.mkdir()
    for form in FORMS:
        (folder / f"look.{form}").write_bytes(b"old")
    before = left(folder)
    for form in FORMS:
        with monkeypatch.context() as patch:
            patch.setattr(f"bigmodel_cli.outputs.os.{place}", came)
            done = cli("attend", base, "a rose", option(form), folder / f"look.{form}")
        assert (done.status, done.out) == (SIGNALS[number], ""), form
        assert done.err.splitlines()[-1] == f"bigmodel: stopped by {number.name}"
        assert left(folder) == before, form


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_without_room_is_5_and_leaves_the_old_file(
    form: str, base: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 68: the system's own error, of a device that is full, and of a draft that is not kept."""
    full = tmp_path / f"full.{form}"
    full.symlink_to("/dev/full")
    done = cli("attend", base, "a rose", option(form), full)
    assert (done.status, done.out) == (5, "")
    assert done.err.splitlines()[-1] == (
        f"bigmodel: {full}: cannot be written: No space left on device; name another file"
    )
    assert full.is_symlink()
    old = tmp_path / f"look.{form}"
    old.write_bytes(b"old")
    before = set(os.listdir(tmp_path))

    def failing(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("bigmodel_cli.outputs.os.fsync", failing)
        done = cli("attend", base, "a rose", option(form), old)
    assert (done.status, done.out) == (5, "")
    assert (old.read_bytes(), set(os.listdir(tmp_path))) == (b"old", before)


def test_what_was_written_before_the_disk_was_full_is_whole(
    base: Path, cli: Cli, tmp_path: Path
) -> None:
    """Row 68: several files in one call; the second cannot be written."""
    done = cli("attend", base, "a rose", "--svg", tmp_path / "a.svg", "--html", "/dev/full")
    assert (done.status, done.out) == (5, "")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")


@pytest.mark.parametrize("measured", [["--diff", "RUN"], ["--over"]])
def test_pictures_of_measurements_on_a_full_disk(
    measured: list[str], decoder_spec: Path, cli: Cli
) -> None:
    """Row 68: --diff and --over draw too."""
    kept = ["--set", "train.steps=2", "--set", "train.checkpoint_every=1"]
    kept += ["--set", "train.validate_every=null", "--set", "train.keep_last=5"]
    assert cli("pretrain", decoder_spec, "--out", "run", *kept).status == 0
    words = ["run" if word == "RUN" else word for word in measured]
    Path("full.png").symlink_to("/dev/full")
    done = cli("attend", "run", "a small model", *words, "--png", "full.png")
    assert (done.status, done.out) == (5, ""), done.err
    assert "full.png: cannot be written: No space left on device" in done.err


def test_a_damaged_checkpoint_is_4_before_a_file_is_written(
    decoder_spec: Path, cli: Cli, tmp_path: Path
) -> None:
    """Rows 13 and 14."""
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    weights = Path("run/checkpoints/step-00000001/model.safetensors")
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        weights.write_bytes(damaged)
        for words in (["--html", "a.html"], ["--ablate", "auto"], ["--diff", "run"], []):
            done = cli("attend", "run", "a small model", *words)
            assert (done.status, done.out) == (4, ""), done.err
            assert "model.safetensors" in done.err
        assert not Path("a.html").exists()


def test_streams_that_are_closed_full_or_left(decoder_spec: Path) -> None:
    """Rows 46 and 85: the file is written all the same; a result that cannot be shown is 5."""
    assert run(["pretrain", str(decoder_spec), "--out", "run", "--set", "train.steps=1"]) == 0
    done = sh("bigmodel attend run 'a small' --svg a.svg >&- 2>&-")
    assert (done.status, done.out, done.err) == (0, "", "")
    assert Path("a.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    gone = sh("bigmodel attend run 'a small' 2>/dev/null | true")
    assert (gone.status, gone.err) == (0, "")
    full = sh("bigmodel attend run 'a small' > /dev/full")
    assert full.status == 5
    assert full.err.splitlines()[-1].startswith("bigmodel: stdout: cannot be written")
