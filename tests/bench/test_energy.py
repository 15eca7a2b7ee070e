"""Joules from a folder as Linux has it, and from a library as NVIDIA's."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Result

from bigmodel_cli.bench import energy
from bigmodel_cli.bench import result as results
from bigmodel_cli.bench.energy import Meter
from bigmodel_cli.bench.report import to_text
from bigmodel_cli.bench.result import Block, Facts, Measured
from bigmodel_cli.bench.saved import read, write, write_csv

Cli = Callable[..., Result]
CPU = torch.device("cpu")


def zone(folder: Path, path: str, name: str, used: int, most: int = 10**9) -> Path:
    """A counter of microjoules."""
    place = folder / path
    place.mkdir(parents=True, exist_ok=True)
    (place / "name").write_text(name + "\n")
    (place / "max_energy_range_uj").write_text(str(most))
    (place / "energy_uj").write_text(str(used))
    return place


def test_processors_and_memory_are_summed_and_counters_begin_anew(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 999_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 7)
    zone(tmp_path, "intel-rapl:0:1", "dram", 100)
    zone(tmp_path, "intel-rapl:2", "psys", 1)
    meter = Meter(CPU, tmp_path)
    before = meter.read()
    zone(tmp_path, "intel-rapl:0", "package-0", 8_500_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 1_000_000)  # 2 J later: its range is 1,000 J
    zone(tmp_path, "intel-rapl:0:0", "core", 900_000)
    zone(tmp_path, "intel-rapl:0:1", "dram", 250_100)
    zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    assert meter.joules(before, meter.read()) == pytest.approx(3.5 + 2.0 + 0.25)


def test_nothing_is_told_where_nothing_can_be_read(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        meter = Meter(CPU, folder)
        assert meter.joules(meter.read(), meter.read()) is None
    place = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    (place / "energy_uj").unlink()
    (place / "energy_uj").mkdir()  # as one that only root may read
    assert Meter(CPU, tmp_path).read() == {}


def test_a_gpu_is_asked_through_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([1.0, 4_000.0, 6_500.0])
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counts),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    own = SimpleNamespace(uuid="12-34")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: own)
    meter = Meter(torch.device("cuda", 0))
    assert meter.gpu == (library, "GPU-12-34")

    class Hashed(SimpleNamespace):
        __hash__ = object.__hash__

    meter.gpu = (Hashed(**vars(library)), "GPU-12-34")
    before = meter.read()
    assert meter.joules(before, meter.read()) == pytest.approx(2.5)


def test_joules_are_in_the_table_the_result_and_the_rows(tmp_path: Path) -> None:
    facts = Facts("a", "training", "tokens", 9.0, 3, "fp32", "contiguous", False, 7, "cpu", 2, "r")
    blocks = [
        Block((0.1, 0.2), {"forward": (0.05, 0.06)}, joules=3.0),
        Block((0.1, 0.1), {"forward": (0.05, 0.06)}, joules=9.0, place=1, rejected="other work"),
        Block((0.1,), {"forward": (0.05,)}, joules=4.5, place=2),
    ]
    result = results.Result([Measured(facts, blocks)], {}, [], "now")
    assert result.measured[0].joules == pytest.approx(2.5)
    assert "energy a step" in to_text(result)
    assert "2.5 J" in to_text(result)
    write(result, tmp_path / "a.json")
    assert read(tmp_path / "a.json").measured[0].joules == pytest.approx(2.5)
    write_csv(result, tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [float(row["joules"]) for row in rows] == [1.5, 1.5, 4.5, 4.5, 4.5]
    # steps of a GPU that were marked are others than those that were timed
    assert Block((0.1,) * 8, {"forward": (0.1, 0.1)}).steps == 10


def test_without_them_nothing_is_said(tmp_path: Path, cli: Cli, decoder_spec: Path) -> None:
    assert decoder_spec.exists()
    command = ["bench", "decoder.yaml", "--seconds", "0.1", "--device", "cpu", "--csv", "a.csv"]
    said = cli(*command)
    assert said.status == 0, said.err
    if Meter(CPU, energy.POWERCAP).read() == {}:
        assert "energy" not in said.out
        assert "joules" not in (tmp_path / "a.csv").read_text()
