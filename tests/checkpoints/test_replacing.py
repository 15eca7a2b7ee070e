"""The same step saved again keeps its older copy until the new one stands; what dead processes
leave goes by the lock.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import replacing
from bigmodel_cli.checkpoints.contents import Contents

PLACE = Path("checkpoints")


SPEC: dict[str, Any] = {"model": {}, "data": {}, "task": {}, "train": {}}


def contents(value: float) -> Contents:
    return Contents(
        3,
        {"w": torch.full((2,), value)},
        {"m": torch.full((2,), value)},
        {"step": 3, "value": value},
        SPEC,
        {},
    )


def read() -> float:
    """The value in the newest checkpoint, which verifies, the same in all its parts."""
    found = checkpoints.newest(PLACE, lambda text: pytest.fail(text))
    assert found is not None
    assert (
        found.model.load()["w"].tolist()
        == found.train.load()["m"].tolist()
        == [found.state["value"]] * 2
    )
    return float(found.state["value"])


def killed_while_saving(point: str, value: float) -> int:
    """The signal that killed a process at a failpoint, while it saved the step again."""
    pid = os.fork()
    if pid == 0:
        os.environ["BIGMODEL_FAILPOINT"] = point
        try:
            checkpoints.save(PLACE, contents(value))
        finally:
            os._exit(0)
    return -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("exchanging", [True, False], ids=["exchanged", "put_aside"])
def test_the_older_checkpoint_of_a_step_is_kept_until_the_new_one_is_committed(
    exchanging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 64: killed at each place of a save of the same step."""
    monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
    if not exchanging:  # as on a file system that cannot exchange two names
        monkeypatch.setattr(replacing, "_exchange", lambda one, other: False)
    points = [f"checkpoint.{p}:kill:{n}" for p in ("write", "synced") for n in (1, 6)]
    points += [
        "checkpoint.rename:kill",
        "checkpoint.renamed:kill",
        *([] if exchanging else ["checkpoint.aside:kill"]),
    ]
    for point in points:
        shutil.rmtree(PLACE, ignore_errors=True)
        old = checkpoints.save(PLACE, contents(1.0))
        checkpoints.mark(PLACE, "last", old)
        assert killed_while_saving(point, 2.0) == signal.SIGKILL, point
        if "aside" not in point:  # between two renames it has another name, until it is put back
            assert read() == (2.0 if "renamed" in point else 1.0), point
        checkpoints.tidy(PLACE)
        assert read() == (2.0 if "renamed" in point else 1.0), point
        assert sorted(os.listdir(PLACE)) == ["last", "step-00000003"], point
        checkpoints.save(PLACE, contents(3.0))
        assert read() == 3.0
        assert sorted(os.listdir(PLACE)) == ["last", "step-00000003"], point


def test_a_step_whose_content_is_the_same_is_not_written_again() -> None:
    """Row 64: and one that is damaged is."""
    path = checkpoints.save(PLACE, contents(1.0))
    inode = path.stat().st_ino
    checkpoints.save(PLACE, contents(1.0))
    assert path.stat().st_ino == inode
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[:-1] + b"\x7f")
    checkpoints.save(PLACE, contents(1.0))
    assert read() == 1.0


def test_unfinished_checkpoints_are_removed_whatever_process_id_they_name() -> None:
    """Row 65: in containers process ids repeat; the caller holds the run's lock."""
    path = checkpoints.save(PLACE, contents(1.0))
    mine = PLACE / f".draft-step-9-{os.getpid()}"
    for tidy in (lambda: checkpoints.tidy(PLACE), lambda: checkpoints.prune(PLACE, {path})):
        for draft in (mine, PLACE / ".draft-step-9-1"):
            draft.mkdir()
            (draft / "model.safetensors").write_bytes(b"half")
        (PLACE / f".last-{os.getpid()}").symlink_to(path.name)
        (PLACE / "step-00000007").mkdir()
        tidy()
        assert os.listdir(PLACE) == ["step-00000003"]


PLACES: dict[str, Any] = {
    "FIFO": os.mkfifo,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to("elsewhere"),
    "file": lambda path: path.write_text("mine"),
}


@pytest.mark.parametrize("exchanging", [True, False], ids=["exchanged", "put_aside"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_any_file_type_instead_of_a_step_is_replaced_without_blocking(
    place: Any, exchanging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 77: removing opened what it removed, and a FIFO in the place of a checkpoint or of a
    draft held the run for ever.
    """
    if not exchanging:
        monkeypatch.setattr(replacing, "_exchange", lambda one, other: False)
    elsewhere = PLACE / "elsewhere"
    elsewhere.mkdir(parents=True)
    (elsewhere / "kept").write_text("mine")
    for name in (
        "step-00000003",
        f".draft-step-3-{os.getpid()}",
        ".aside-step-00000003",
        ".draft-step-9-1",
    ):
        place(PLACE / name)
    signal.alarm(20)
    try:
        saved = checkpoints.save(PLACE, contents(4.0))
        checkpoints.prune(PLACE, {saved})
    finally:
        signal.alarm(0)
    assert read() == 4.0
    assert sorted(p.name for p in PLACE.iterdir()) == ["elsewhere", "step-00000003"]
    assert (elsewhere / "kept").read_text() == "mine"


def test_an_old_checkpoint_with_a_folder_in_the_place_of_a_file_is_removed() -> None:
    """Row 77: the removal of what is no longer kept ended in a traceback."""
    old, new = (
        checkpoints.save(PLACE, contents(value), f"step-0000000{n}")
        for n, value in ((1, 1.0), (3, 3.0))
    )
    (old / "model.safetensors").unlink()
    (old / "model.safetensors" / "inner").mkdir(parents=True)
    checkpoints.prune(PLACE, {new})
    assert [p.name for p in PLACE.iterdir()] == ["step-00000003"]
