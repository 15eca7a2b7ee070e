"""A sample of the fuzzers of tests/measure with fixed seeds, and that their engine notices what it
is to notice.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "measure"))
import fuzz_checkpoints
import fuzz_data
import fuzz_folders
import fuzz_specs
import fuzzing
from fuzzing import Campaign, Trial, described
from watching import Watch

# other tests run these lines; coverage would take half of the time again
pytestmark = pytest.mark.no_cover


def assert_no_fault(campaign: Campaign, seeds: range) -> None:
    faults = campaign.run(seeds)
    assert not faults, described(faults)
    assert len({outcome.status for outcome in campaign.outcomes}) > 1, (
        "all cases end alike: they are too much alike"
    )


def few_or_many(few: int, many: int) -> list[Any]:
    """How many cases, by default and where there is time."""
    return [few, pytest.param(many, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with room beside it and above it; the cache is its own, and the process comes back
    out of it.
    """
    path = tmp_path_factory.mktemp("fuzz") / "in" / "side"
    path.mkdir(parents=True)
    before, cache = os.getcwd(), os.environ.get("XDG_CACHE_HOME")
    yield path
    os.chdir(before)
    if cache is not None:
        os.environ["XDG_CACHE_HOME"] = cache


@pytest.fixture(scope="module")
def data(folder: Path) -> fuzz_data.Data:
    """Small data of every form, and trained models."""
    return fuzz_data.prepared(folder)


@pytest.mark.parametrize("count", few_or_many(40, 150))
def test_mutated_specs_are_refused_or_planned_and_trained(count: int, tmp_path: Path) -> None:
    """Rows 23 to 29, 86."""
    assert_no_fault(fuzz_specs.campaign(tmp_path, every=8), range(count))


@pytest.mark.parametrize("count", few_or_many(60, 200))
def test_mutated_data_is_refused_or_read(count: int, data: fuzz_data.Data) -> None:
    """Rows 30 to 37, 80, 84, 85."""
    assert_no_fault(Campaign(data.case, data.folder), range(count))


@pytest.mark.parametrize("count", few_or_many(16, 70))
def test_mutated_checkpoints_are_refused_or_used_and_open_nothing_else(
    count: int, data: fuzz_data.Data
) -> None:
    """Rows 13 to 22, 75 to 79, 83."""
    assert_no_fault(fuzz_checkpoints.watched(data.models), range(count))


@pytest.mark.parametrize("count", few_or_many(12, 100))
def test_mutated_folders_are_refused_or_used_and_open_nothing_else(
    count: int, folder: Path
) -> None:
    """Rows 15 to 22, of folders in Hugging Face's layout."""
    place = folder / "published" / "side"
    place.mkdir(parents=True)
    families = ("llama", *fuzz_folders.CONFIGS)[: 1 if count < 50 else None]
    assert_no_fault(fuzz_folders.campaign(place, families), range(count))


def _writes_control_characters() -> int:
    print("\x1b[31m", file=sys.stderr)
    return 2


def _allocates() -> int:
    bytearray(300 << 20)
    return 0


def _dies() -> int:
    faulthandler.disable()  # else its dump stands among the results
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


PLANTED: dict[str, Callable[[], int]] = {
    "ZeroDivisionError at": lambda: 1 // 0,
    "status 4": lambda: 4,
    "no message": lambda: 2,
    "a raw control character": _writes_control_characters,
    "hangs for 3 s": lambda: os.open("pipe", os.O_RDONLY),
    "takes more than 100 MiB": _allocates,
    "the process died (-11)": _dies,
    "MemoryError at": lambda: len(bytearray(1 << 40)),
    "": lambda: 0,
}


def test_the_engine_notices_each_planted_fault_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzing, "WALL", 3.0)
    monkeypatch.setattr(fuzzing, "BYTES", 100 << 20)
    os.mkfifo(tmp_path / "pipe")
    calls = list(PLANTED.values())
    campaign = Campaign(lambda seed: Trial("planted", calls[seed], (0, 2)), tmp_path)
    campaign.run(range(len(calls)))
    assert [o.seed for o in campaign.outcomes] == list(range(len(calls)))
    for outcome, fault in zip(campaign.outcomes, PLANTED, strict=True):
        assert outcome.fault.startswith(fault) if fault else not outcome.fault, outcome


def _connects() -> None:
    with socket.socket() as made:
        made.connect_ex(("127.0.0.1", 1))


@pytest.mark.parametrize(
    ("act", "noted"),
    [
        (lambda: open("../outside/secret").close(), "open of what is outside: secret"),
        (lambda: open("link").close(), "open of what is outside: secret"),
        (lambda: open("/etc/hostname").close(), "open /etc/hostname"),
        (lambda: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (_connects, "socket.connect"),
        (lambda: __import__("antigravity_not_there"), "import antigravity_not_there"),
        (lambda: open("own").close(), ""),
    ],
    ids=["outside", "a link outside", "elsewhere", "program", "socket", "module", "own file"],
)
def test_the_audit_hook_notes_what_a_checkpoint_must_not_do(
    act: Callable[[], None], noted: str, tmp_path: Path
) -> None:
    """Rows 17, 19, 22: in a process of its own, since a hook stays."""
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "secret").touch()
    (tmp_path / "inside" / "own").touch()
    (tmp_path / "inside" / "link").symlink_to("../outside/secret")
    seen: list[str] = []

    def call() -> int:
        watch = Watch([tmp_path / "inside"], [tmp_path / "outside"])
        watch.begin()
        with contextlib.suppress(ImportError):
            act()
        seen.extend(watch.found())
        return 0

    campaign = Campaign(
        lambda seed: Trial("", call, (0,), lambda status, written: "; ".join(seen)),
        tmp_path / "inside",
    )
    campaign.run([0])
    fault = campaign.outcomes[0].fault
    assert noted in fault if noted else not fault


def test_a_case_is_repeated_by_its_seed(data: fuzz_data.Data) -> None:
    os.chdir(data.folder)

    def files(seed: int) -> dict[str, bytes]:
        data.case(seed)
        return {str(p): p.read_bytes() for p in sorted(Path("case").rglob("*")) if p.is_file()}

    for seed in range(20):
        assert files(seed) == files(seed), seed
