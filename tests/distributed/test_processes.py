"""Runs of two processes: one voice, one status, whatever happens to either (rows 51 and 52)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import digests, losses
from launched import SPEC, started, status

UNEVEN = """\
model:
  type: encoder
  dim: 16
  pool: mean
  position: {type: learned}
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu, hidden: 32}}]
data: {type: synthetic, problem: parity, form: labels, length: 9, samples: 101, val_samples: 101,
  test_samples: 101}
task: {type: classification}
train:
  {epochs: 1, batch_size: 8, validate_epochs: 1, log_every: 1, precision: fp32, timeout: 30,
   optimizer: {type: adamw, lr: 1e-3}, schedule: {type: constant}}
"""
LONG = ["--set", "train.steps=100000"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes")
    (path / "text.txt").write_text("a rose is a rose is a rose. " * 100)
    (path / "spec.yaml").write_text(SPEC)
    return path


def test_one_process_speaks_and_a_lost_one_is_replaced_to_the_bit(folder: Path) -> None:
    """Each line once, one path on stdout; killed in a save beside the training and started again,
    the same weights.
    """
    aside = ["--set", "train.save_async=on"]
    words = ["pretrain", "spec.yaml", "--out", "whole", "--processes", "2", *aside]
    with started(folder, *words) as run:
        code, out, err = run.end()
    assert (code, out) == (0, "whole/checkpoints/step-00000040\n")
    lines = err.splitlines()
    assert len([line for line in lines if line.startswith("device: ")]) == 1
    assert len([line for line in lines if "2 processes" in line]) == 1
    assert "model: " in (folder / "whole" / "rank-00001.log").read_text()
    assert status(folder, "whole")["state"] == "done"
    words = ["pretrain", "spec.yaml", "--out", "again", "--processes", "2", "--restarts", "4"]
    words += aside
    with started(folder, *words, BIGMODEL_FAILPOINT="checkpoint.synced:kill:12") as run:
        code, out, err = run.end()
    assert code == 0, err
    assert "going on with again" in err
    last = "checkpoints/step-00000040"
    assert digests(folder / "again" / last) == digests(folder / "whole" / last)


@pytest.mark.parametrize(
    ("number", "rank", "code", "said"),
    [
        (signal.SIGKILL, 1, 7, "process 1 of 2 is gone"),
        (signal.SIGKILL, 0, 7, "process 0 of 2 is gone"),
        (signal.SIGSTOP, 1, 7, "process 1 of 2 has given no sign of life for 4 s"),
        (signal.SIGSTOP, 0, 7, "process 0 of 2 has given no sign of life for 4 s"),
        (signal.SIGTERM, 1, 143, "stopped at step"),
        (signal.SIGINT, 0, 130, "stopped at step"),
    ],
)
def test_whatever_happens_to_one_all_end_with_one_status(
    number: int, rank: int, code: int, said: str, folder: Path
) -> None:
    name = f"{signal.Signals(number).name}{rank}"
    words = ["pretrain", "spec.yaml", "--out", name, "--processes", "2", *LONG]
    with started(folder, *words) as run:
        run.reach(name, 11)
        pids = [run.rank(0), run.rank(1)]
        os.kill(pids[rank], number)
        began = time.monotonic()
        found, out, err = run.end()
        assert time.monotonic() < began + 30
    assert (found, out) == (code, ""), err
    assert err.count(said) == 1, err
    assert "Traceback" not in err
    assert "--resume --out" in err
    recorded = status(folder, name)
    assert (recorded["state"], recorded["code"]) == ("failed" if code == 7 else "stopped", code)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_fault_of_a_spec_is_said_once(folder: Path) -> None:
    with started(folder, "pretrain", "missing.yaml", "--processes", "2") as run:
        code, out, err = run.end()
    assert (code, out, err.count("missing.yaml")) == (2, "", 1)


def test_processes_do_not_outlive_their_launcher(folder: Path) -> None:
    """They save and stop, as at a SIGTERM."""
    words = ["pretrain", "spec.yaml", "--out", "orphans", "--processes", "2", *LONG]
    with started(folder, *words) as run:
        run.reach("orphans", 3)
        pids = [run.rank(0), run.rank(1)]
        run.process.kill()
        _, err = run.process.communicate(timeout=90)  # they hold stderr until they end
    assert not any(_lives(pid) for pid in pids)
    assert err.count("stopped at step") == 1
    assert (status(folder, "orphans")["state"], status(folder, "orphans")["code"]) == (
        "stopped",
        143,
    )


def _lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_lost_before_they_meet_is_said_at_once(rank: int, folder: Path) -> None:
    name = f"early{rank}"
    with started(folder, "pretrain", "spec.yaml", "--out", name, "--processes", "2") as run:
        for _ in range(6000):
            with contextlib.suppress(AssertionError, OSError):
                os.kill(run.rank(rank), signal.SIGKILL)
                break
            time.sleep(0.01)
        code, out, err = run.end()
    assert (code, out) == (7, ""), err
    assert err.count(f"process {rank} of 2 was killed") == 1, err
    assert not (folder / name).exists()


def test_what_cannot_be_shared_equally_hangs_nothing(folder: Path) -> None:
    """101 items of two processes: all are counted, and the figures are those of one (row 53)."""
    (folder / "uneven.yaml").write_text(UNEVEN)
    words = ["pretrain", "uneven.yaml", "--out", "uneven", "--processes", "2"]
    with started(folder, *words) as run:
        code, _, err = run.end()
    assert code == 0, err
    found = []
    for more in ([], ["--processes", "2"]):
        name = f"predictions{len(more)}.jsonl"
        with started(folder, "eval", "uneven", "--json", "--predictions", name, *more) as run:
            code, out, err = run.end()
        assert code == 0, err
        found.append((out, (folder / name).read_bytes()))
        assert err.count("device: ") == 1
    assert found[0] == found[1]
    assert json.loads(found[0][0])["metrics"]["accuracy"]["count"] == 101
    assert found[0][1].count(b"\n") >= 101


def test_a_run_goes_on_in_another_number_of_processes(folder: Path) -> None:
    """Two, one and three of them, as one that nobody disturbed; each change is said (row 54)."""
    constant = ["--set", "train.schedule={type: constant}"]
    words = ["pretrain", "spec.yaml", "--out", "one", "--set", "train.steps=30", *constant]
    with started(folder, *words) as run:
        assert run.end()[0] == 0
    said = []
    for steps, count in ((10, 2), (20, 1), (30, 3)):
        more = ["--resume"] if said else ["spec.yaml", *constant]
        more += ["--processes", str(count)] if count > 1 else []
        words = ["pretrain", "--out", "elastic", "--set", f"train.steps={steps}", *more]
        with started(folder, *words) as run:
            code, _, err = run.end()
        assert code == 0, err
        said.append([line for line in err.splitlines() if line.startswith("processes: ")])
    assert [len(lines) for lines in said] == [0, 1, 1]
    assert "1, and 2 before" in said[1][0]
    assert "3, and 1 before" in said[2][0]
    expected, found = losses(folder / "one"), losses(folder / "elastic")
    assert sorted(found) == sorted(expected) == list(range(1, 31))
    assert all(abs(found[step] - expected[step]) <= 1e-6 for step in expected)
