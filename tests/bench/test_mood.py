"""What else a machine did, from files as Linux writes them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bigmodel_cli.bench.mood import Reading, mood, one_tick, read, refusal

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
    (proc / "cpuinfo").unlink()
    assert read(proc, [0]) == Reading(959.0, 2.0, 47.0, None)
    (proc / "stat").write_text("cpu0 1 2 x 4\n")
    assert read(proc, [0]) is None
    assert read(tmp_path / "none") is None


def test_in_a_container_that_numbers_its_processors_anew_all_count(proc: Path) -> None:
    for own in ([7], [11, 12]):
        found = read(proc, own)
        assert found is not None
        assert (found.all, found.stolen, found.busy) == (2030.0, 7.0, 203.0)
        assert found.mhz == pytest.approx(6000.5 / 3)


def test_a_frequency_that_is_no_number_is_not_known(proc: Path) -> None:
    (proc / "cpuinfo").write_text("processor : 0\ncpu MHz : ...\n")
    found = read(proc, [0])
    assert found is not None
    assert found.mhz is None


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no list of threads")
def test_the_processors_of_every_thread_count(monkeypatch: pytest.MonkeyPatch, proc: Path) -> None:
    """As under OMP_PROC_BIND, where each thread has its own, the first one too."""
    first = {0: {0}, os.getpid(): {0}}
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: first.get(thread, {1}))
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert read(proc) == Reading(604.0 + 959.0, 6.0, 95.0 + 47.0, 2500.25)
    finally:
        done.set()
        thread.join()


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


def test_one_tick_of_a_short_block_is_in_doubt() -> None:
    """0.15 s of one processor are fifteen ticks: one alone would be 7 %."""
    before, after = Reading(0, 0, 0, None), Reading(15, 0, 15, None)
    doubt, second = one_tick(before, after), os.sysconf("SC_CLK_TCK")
    assert doubt == pytest.approx(1 / 15)
    assert refusal(mood(before, after, 14.2 / second), None, doubt) == ""
    assert refusal(mood(before, after, 12.0 / second), None, doubt) == (
        "other processes took 20 % of the processors' time"
    )
    assert one_tick(None, after) == one_tick(before, before) == 0
