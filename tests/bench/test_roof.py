"""Peaks of the machine: the best of several shapes, kept for a day, never below what is seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bigmodel_cli.bench import roof
from bigmodel_cli.bench.roof import Peaks, forget, measured_peaks, peaks

CPU = torch.device("cpu")
NOW = 1_790_000_000.0


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was measured: nothing is, peaks are made up, and a try gives 40 FLOP/s."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(time, "time", lambda: NOW)
    found: list[str] = []

    def made_up(device: torch.device, precision: str) -> Peaks:
        found.append(precision)
        return Peaks(40.0, 8.0, (2, 3, 4), precision, 1, time.time())

    monkeypatch.setattr(roof, "measured_peaks", made_up)
    monkeypatch.setattr(roof, "_rate", lambda *_: 40.0)
    return found


def test_peaks_are_measured_once_for_each_precision_and_number_of_threads(
    measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = peaks(CPU, "fp32")
    assert peaks(CPU, "fp32") == first
    assert peaks(CPU, "bf16").precision == "bf16"
    assert measured == ["fp32", "bf16"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    peaks(CPU, "fp32")
    assert len(measured) == 3


@pytest.mark.parametrize("later", [25 * 3600.0, -60.0])
def test_peaks_of_another_day_are_measured_again(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    peaks(CPU, "fp32")
    monkeypatch.setattr(time, "time", lambda: NOW + later)
    assert peaks(CPU, "fp32").date == NOW + later
    assert len(measured) == 2


def test_asking_for_new_ones_forgets_all(measured: list[str]) -> None:
    peaks(CPU, "fp32")
    forget()
    peaks(CPU, "fp32")
    assert len(measured) == 2


@pytest.mark.parametrize("text", ["", "{}", '{"matrix_rate": -1}', "[1]", "\0"])
def test_damaged_ones_are_measured_again(measured: list[str], tmp_path: Path, text: str) -> None:
    peaks(CPU, "fp32")
    (place,) = tmp_path.rglob("*.json")
    place.write_text(text)
    peaks(CPU, "fp32")
    assert len(measured) == 2
    assert json.loads(place.read_text())["matrix_rate"] == 40


def test_a_machine_that_is_faster_than_its_peaks_has_new_ones(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks(CPU, "fp32")
    monkeypatch.setattr(roof, "_rate", lambda *_: 41.0)  # within 3 %
    peaks(CPU, "fp32")
    assert len(measured) == 1
    monkeypatch.setattr(roof, "_rate", lambda *_: 50.0)
    slow = Peaks(30.0, 9.0, (5, 5, 5), "fp32", 1, NOW + 9)
    monkeypatch.setattr(roof, "measured_peaks", lambda *_: slow)
    assert peaks(CPU, "fp32") == replace(slow, matrix_rate=40.0, shape=(2, 3, 4))
    assert "faster than its peaks were" in capsys.readouterr().err


def test_no_place_for_the_cache_does_not_matter(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    peaks(CPU, "fp32")
    peaks(CPU, "fp32")
    forget()
    assert len(measured) == 2


@pytest.mark.parametrize("plain", [True, False])
def test_the_best_shape_counts_and_slow_ones_are_not_tried(
    monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """Where a CPU is faster in fp32 than in a precision that it emulates, that is the peak."""
    shapes = ((8, 8, 8), (16, 8, 8), (8, 8, 16), (512, 512, 1024))
    monkeypatch.setitem(roof.SHAPES, "cpu", shapes)
    monkeypatch.setattr(roof, "applies", lambda: False)
    of_fp32 = [0.02, 0.02, 0.04] if plain else [0.01, 0.005, 0.04]
    times = iter([0.01, 0.01, 0.04, *of_fp32, 0.5])

    def seconds(work: Callable[[], object], device: torch.device) -> float:
        work()
        return next(times)

    found = measured_peaks(CPU, "bf16", seconds)
    assert found.shape == (16, 8, 8)
    assert found.matrix_rate == pytest.approx(2 * 16 * 8 * 8 / (0.01 if plain else 0.005))
    assert found.copy_rate == 2 * (1 << 27) / 0.5
    text = str(replace(found, date=NOW))
    rate = "bf16 products of 16 x 8 x 8: 204.8" if plain else "fp32 products of 16 x 8 x 8: 409.6"
    assert text.startswith(f"{rate} kFLOP/s; copies: 536.9 MB/s; ")
    assert " measured 2026-09-" in text
