"""Pictures and TensorBoard's files are extras: what cannot be written of them is a warning, and the
run's result stands.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result

from bigmodel_cli import checkpoints
from bigmodel_cli.errors import ResourceError
from bigmodel_cli.trackers.tensorboard import TensorBoard
from bigmodel_cli.train.observers import curve

Cli = Callable[..., Result]
FULL = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO]


def failing(number: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.curve
@pytest.mark.parametrize("number", FULL, ids=errno.errorcode.get)
def test_a_curve_that_cannot_be_written_leaves_the_result(
    number: int, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """row 68: 0, the checkpoint on stdout, one warning, and no piece of a picture."""
    honest = Path.write_bytes
    monkeypatch.setattr(
        Path,
        "write_bytes",
        lambda self, data: (failing(number) if "curve" in self.name else honest)(self, data),
    )
    result = cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=2")
    assert (result.status, result.out) == (0, "run/checkpoints/step-00000002\n"), result.err
    assert result.err.count(f"warning: run/curve.png: not drawn: {os.strerror(number)}\n") == 1
    assert "curve: " not in result.err
    assert not list(Path("run").rglob("*curve*"))
    assert json.loads(Path("run/status.json").read_text())["state"] == "done"
    assert checkpoints.find(Path("run")).name == "step-00000002"


@pytest.mark.parametrize("fault", [ValueError("mathtext"), MemoryError(), RuntimeError()])
def test_any_fault_of_a_picture_is_a_warning(
    fault: Exception, cnn_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """row 68: of the curve and of rebuilt images."""

    def draw(*arguments: Any) -> None:
        raise fault

    monkeypatch.setattr("bigmodel_cli.train.observers.curve.draw_curve", draw)
    result = cli("pretrain", cnn_spec, "--out", "run", "--set", "train.steps=1")
    assert (result.status, result.out) == (0, "run/checkpoints/step-00000001\n"), result.err
    assert (
        f"warning: run/curve.png: not drawn: {str(fault) or type(fault).__name__}\n" in result.err
    )
    assert curve.drawn(Path("x.png"), lambda: None, print)


@pytest.mark.curve
def test_a_metrics_log_that_was_torn_costs_the_curve_alone(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rows 9 and 68: the curve reads what is on the disk."""
    honest = curve.draw_curve

    def torn(metrics: Path, picture: Path, metric: str) -> None:
        metrics.write_bytes(metrics.read_bytes()[:-9])
        honest(metrics, picture, metric)

    monkeypatch.setattr("bigmodel_cli.train.observers.curve.draw_curve", torn)
    result = cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=2")
    assert result.status == 0
    assert "warning: run/curve.png: not drawn: " in result.err


class Broken:
    """A file that takes no more after some writes."""

    def __init__(self, number: int, room: int) -> None:
        self.number, self.room = number, room

    def write(self, data: bytes) -> int:
        self.room -= 1
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number))
        return len(data)


@pytest.mark.parametrize("number", FULL, ids=errno.errorcode.get)
def test_tensorboard_files_that_cannot_be_written(
    number: int, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """row 68: 5 before any training where they cannot be begun; later one warning, and training
    goes on.
    """
    pytest.importorskip("tensorboard")
    words = ["pretrain", decoder_spec, "--set", "train.tensorboard=true", "--set", "train.steps=3"]
    make = Path.mkdir

    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        (failing(number) if self.name == "tensorboard" else make)(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        result = cli(*words, "--out", "none")
    assert result.status == 5
    assert (
        f"cannot be written: {os.strerror(number)}; make room, or leave it out of train.trackers"
        in result.err
    )
    assert not list(Path("none").glob("checkpoints/*"))
    begin = TensorBoard.__init__

    def begun(self: TensorBoard, directory: Path) -> None:
        begin(self, directory)
        self.records._writer = Broken(number, 1)

    monkeypatch.setattr(TensorBoard, "__init__", begun)
    result = cli(*words, "--out", "run")
    assert (result.status, result.out) == (0, "run/checkpoints/step-00000003\n"), result.err
    assert result.err.count("training goes on without TensorBoard's files") == 1
    assert "Traceback" not in result.err


def test_tensorboard_goes_on_in_a_file_of_its_own(tmp_path: Path) -> None:
    """rows 11 and 68: what was written before a resume stays; a folder in the place of the files is
    5.
    """
    pytest.importorskip("tensorboard")
    for _ in range(2):
        TensorBoard(tmp_path / "events").write(
            {"step": 1, "loss": 0.5, "lr": float("nan"), "val": {"x": 2.0}}
        )
    sizes = [p.stat().st_size for p in (tmp_path / "events").iterdir()]
    assert sum(sizes) > 200
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"cannot be written: (File exists|Not a directory)"):
        TensorBoard(tmp_path / "file")
