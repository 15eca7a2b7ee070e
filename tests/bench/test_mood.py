"""What else a machine did, from files as Linux writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bigmodel_cli.bench.mood import Reading, mood, read, refusal

STAT = """\
cpu  130 4 66 1800 20 1 2 7 0 0
cpu0 30 0 16 900 10 0 1 2 0 0
cpu1 60 4 30 500 5 1 0 4 0 0
cpu11 40 0 20 400 5 0 1 1 0 0
intr 8523 0 9
ctxt 11990
"""
CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu MHz\t\t: 2000.5
flags\t\t: fpu vme

processor\t: 1
vendor_id\t: AuthenticAMD
cpu MHz\t\t: 3000.0

processor\t: 11
vendor_id\t: AuthenticAMD
cpu MHz\t\t: 1000.0
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    return tmp_path


def test_the_processors_that_it_may_run_on_count(proc: Path) -> None:
    assert read(proc, [1]) == Reading(604.0, 4.0, 95.0, 3000.0)
    assert read(proc, [1, 11]) == Reading(604.0 + 467.0, 5.0, 95.0 + 61.0, 2000.0)
    assert read(proc, [0]) == Reading(959.0, 2.0, 47.0, 2000.5)


def test_where_nothing_is_told(proc: Path, tmp_path: Path) -> None:
    assert read(proc, [7]) is None  # as in a container that hides it
    (proc / "cpuinfo").unlink()
    assert read(proc, [0]) == Reading(959.0, 2.0, 47.0, None)
    (proc / "stat").write_text("cpu0 1 2 x 4\n")
    assert read(proc, [0]) is None
    assert read(tmp_path / "none") is None


def test_without_pinning_the_line_of_all_counts(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    found = read(proc)
    assert found is not None
    assert (found.all, found.stolen, found.busy) == (2030.0, 7.0, 203.0)
    assert found.mhz == pytest.approx(6000.5 / 3)


def test_a_block_beside_other_work_is_refused() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    before, after = Reading(0, 0, 0, 3000.0), Reading(10 * ticks, 0, 9 * ticks, 2900.0)
    assert refusal(mood(before, after, 9.0), 2950.0) == ""
    assert refusal(mood(before, after, 8.0), None) == (
        "other processes took 10 % of the processors' time"
    )
    slow = mood(before, Reading(10 * ticks, 0, 9 * ticks, 2000.0), 9.0)
    assert refusal(slow, 3000.0) == "the processors ran at 2000 MHz"
    stolen = mood(before, Reading(10 * ticks, ticks, 8 * ticks, None), 9.0)
    assert refusal(stolen, None) == "10 % of the processors' time was stolen"
