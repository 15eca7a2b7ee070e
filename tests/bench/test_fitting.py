"""The largest batch that fits, sweeps, and what memory is a process's own: without any timing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from bigmodel_cli.bench import Request, bench, fitting
from bigmodel_cli.bench.fitting import largest, search
from bigmodel_cli.bench.own_memory import OwnMemory
from bigmodel_cli.bench.result import Block, Facts, Work
from bigmodel_cli.bench.variants import split, variants
from bigmodel_cli.bench.worker import Asked, Peaks
from bigmodel_cli.device import free_memory
from bigmodel_cli.errors import DataError, OutOfMemory, ResourceError, SpecError, Unfit
from bigmodel_cli.overrides import Override


class Fake:
    """A target that takes 1,000 bytes, and 100 for each sample; `most` of them fit."""

    places: Sequence[str] = ("fake",)
    opened: ClassVar[list[int]] = []

    def __init__(self, asked: Asked, most: int = 1 << 30, fault: type[Exception] = OutOfMemory):
        sizes = [c.value for c in asked.changes if isinstance(c, Override) and "batch_s" in c.key]
        self.size = sizes[-1] if sizes else 8
        self.room = asked.room
        self.opened.append(self.size)
        if self.size > most:
            raise fault("too large")

    def facts(self) -> Facts:
        return Facts(
            "", "training", "samples", self.size, self.size, "fp32", "", False, 1, "cpu", 1, "real"
        )

    def block(self, seconds: float, least: int) -> Block:
        return Block((0.5,) * 3, {"forward": (0.5,) * 3})

    def work(self) -> Work | None:
        return None

    def peaks(self) -> Peaks:
        return Peaks(1000 + 100 * self.size, 5000, None)

    def close(self) -> None:
        pass


def fake(most: int, fault: type[Exception] = OutOfMemory) -> Callable[[Asked], Fake]:
    Fake.opened = []
    return lambda asked: Fake(asked, most, fault)


@pytest.mark.parametrize("most", [1, 2, 3, 17, 100, 1000, 12345])
@pytest.mark.parametrize("guess", [None, 1, 90, 1000, 100_000])
def test_the_search_ends_near_the_largest(most: int, guess: int | None) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= most

    found = search(fits, 1 << 20, 1, guess)
    assert found <= most <= found + max(1, found // 16)
    assert len(tried) < 60
    assert len(set(tried)) == len(tried)


def test_the_search_does_not_go_beyond_the_most() -> None:
    assert search(lambda size: True, 1000) == 1000
    assert search(lambda size: True, 1000, 16, 5) == 1000


@pytest.mark.parametrize("fault", [OutOfMemory, ResourceError, Unfit, DataError])
def test_what_two_trials_need_foresees_the_others(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda: int(101_000 / 0.95) + 1)
    found = largest(Asked("fake.yaml"), fake(1040, fault))
    assert Fake.opened[:3] == [1, 16, 1000]  # (101,000 - 1,000) / 100
    assert found <= 1040 <= found + found // 16
    assert len(Fake.opened) < 8


def test_the_fault_of_the_smallest_batch_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfMemory, match="too large"):
        largest(Asked("fake.yaml"), fake(0))
    # one sample is too few for batch normalisation
    start = fake(40)

    def needs_two(asked: Asked) -> Fake:
        found = start(asked)
        if found.size == 1:
            raise SpecError("batch normalisation has one value per channel")
        return found

    monkeypatch.setattr(fitting, "free_memory", lambda: None)
    assert 38 <= largest(Asked("fake.yaml"), needs_two) <= 40


def test_a_batch_that_lacks_memory_later_is_taken_smaller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda: None)
    start = fake(100)

    def later(asked: Asked) -> Fake:
        found = start(asked)
        if asked.room is None and found.size > 90:
            raise OutOfMemory("too large in the second step")
        return found

    result = bench(Request(["fake.yaml"], seconds=0.1, batch="auto"), later)
    assert 80 < result.measured[0].facts.batch_size <= 90
    assert "samples did not fit for long; fewer are taken" in capsys.readouterr().err


def test_a_row_that_does_not_fit_is_left_out_with_the_reason() -> None:
    sweeps = ["train.batch_size=4,8"]

    def start(asked: Asked) -> Fake:
        if "train.batch_size=8" in asked.changes:
            raise Unfit("train.batch_size: 8 samples do not fit")
        return Fake(asked)

    result = bench(Request(["fake.yaml"], seconds=0.1, sweeps=sweeps), start)
    assert [m.facts.name for m in result.measured] == ["fake batch_size=4"]
    (left,) = result.left_out
    assert (left.name, left.reason) == (
        "fake.yaml batch_size=8",
        "train.batch_size: 8 samples do not fit",
    )
    assert result.to_json()["left_out"] == [vars(left)]

    def none(asked: Asked) -> Fake:
        raise Unfit("nothing fits")

    with pytest.raises(Unfit, match="nothing fits"):
        bench(Request(["fake.yaml"], seconds=0.1, sweeps=sweeps), none)


def test_sweeps_are_every_combination() -> None:
    found = variants(["train.batch_size=4,8", "model.blocks.0.mixer={type: a, b: [1, 2]},c"])
    assert [variant.title for variant in found] == [
        " batch_size=4 mixer={type: a, b: [1, 2]}",
        " batch_size=4 mixer=c",
        " batch_size=8 mixer={type: a, b: [1, 2]}",
        " batch_size=8 mixer=c",
    ]
    assert found[1].changes == ["train.batch_size=4", "model.blocks.0.mixer=c"]
    assert [v.title for v in variants(["a.b.c=1", "a.d.c=2"])] == [" b.c=1 d.c=2"]
    assert [v.changes for v in variants([])] == [[]]
    assert split("'a,b',\"c,d\",e") == ["'a,b'", '"c,d"', "e"]


@pytest.mark.parametrize("text", ["a", "=1,2", "a=", "a=1,,2", "a..b=1"])
def test_a_sweep_that_is_none(text: str) -> None:
    with pytest.raises(SpecError, match="write KEY=V1,V2"):
        variants([text])


def test_memory_of_its_own_is_above_what_was_there(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmHWM:\t  900 kB\nVmRSS:\t  300 kB\n")
    own = OwnMemory(tmp_path)
    assert (tmp_path / "clear_refs").read_text() == "5"
    status.write_text("VmHWM:\t  450 kB\nVmRSS:\t  320 kB\n")
    assert own.peak() == 150 * 1024
    status.write_text("VmHWM:\t  200 kB\nVmRSS:\t  200 kB\n")
    assert own.peak() == 0


def test_free_memory_is_within_the_group(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:  80 kB\n")
    assert free_memory(tmp_path, tmp_path / "none") == 80 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    (tmp_path / "memory.current").write_text("20000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 5000\n")
    assert free_memory(tmp_path, tmp_path) == 35_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path, tmp_path) == 80 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what is mapped on Linux")
def test_a_trial_beyond_its_room_fails_by_itself() -> None:
    code = (
        "from bigmodel_cli.bench.own_memory import limit_memory; limit_memory(64 << 20);"
        "bytearray(16 << 20)\n"
        "try: bytearray(256 << 20)\n"
        "except MemoryError: print('refused')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=True
    )
    assert run.stdout == "refused\n"
