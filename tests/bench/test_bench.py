"""`bigmodel bench` of several networks: their names, how they compare, and the memory that a dry
run foresees.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Result

from bigmodel_cli.bench import BenchReport, Timing
from bigmodel_cli.console import rate, seconds_of, short_names
from bigmodel_cli.spec import load
from bigmodel_cli.train.plan import Memory
from bigmodel_cli.train.session import dry_run

Cli = Callable[..., Result]
NAMES = [
    ([["a"], ["b"]], ["a", "b"]),
    ([["x/a"], ["y/a"], ["y/b"]], ["x/a", "y/a", "b"]),
    ([["a"], ["z/a"]], ["a", "z/a"]),
    ([["a", "a.yaml"], ["a", "a.yml"]], ["a.yaml", "a.yml"]),
    ([["runs/a", "runs/a/step-1"], ["runs/a", "runs/a/step-2"]], ["step-1", "step-2"]),
    ([["a", "a.yaml"], ["a", "a.yaml"]], ["a (1)", "a (2)"]),
]


@pytest.mark.parametrize(("paths", "names"), NAMES, ids=[" ".join(names) for _, names in NAMES])
def test_bench_names_specs_by_the_shortest_distinct_part_of_their_paths(
    paths: list[list[str]], names: list[str]
) -> None:
    assert short_names([[Path(p) for p in own] for own in paths]) == names


def test_bench_of_several_specs_compares_them_with_the_memory_of_the_dry_run(
    decoder_spec: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "decoder.yaml"
    other.write_text(decoder_spec.read_text().replace("dim: 16", "dim: 24"))
    result = cli("bench", "decoder.yaml", "other/decoder.yaml", "--seconds", "0.1", "--json")
    assert result.status == 0, result.err
    first, second = json.loads(result.out)["benchmarks"]
    assert (first["name"], second["name"]) == ("decoder", "other/decoder")
    assert first["ratio_to_first"] == 1
    assert second["ratio_to_first"] == pytest.approx(second["per_second"] / first["per_second"])
    for timing, spec in ((first, decoder_spec), (second, other)):
        assert timing["memory"] == dry_run(load(spec), "cpu").to_json()["memory"]
        assert timing["memory"]["peak"] == pytest.approx(timing["peak_memory_bytes"], rel=0.1)


def test_rates_of_other_units_are_not_compared() -> None:
    memory = Memory(1000, 1000, 2000, 6000, "4 samples")
    first = Timing(
        "a", "fp32", "contiguous", 4, 0.5, 0.6, 9, 8.0, "samples", 7, 10, 20.0, 40.0, memory, 11000
    )
    text = BenchReport(
        "cpu", [first, replace(first, name="b", unit="tokens", per_second=1234.0)]
    ).to_text()
    assert "to the first" not in text
    assert "8 samples/s" in text
    assert "1,234 tokens/s" in text
    assert "500.00 ms" in text
    three = [
        first,
        replace(first, name="b", per_second=12.0),
        replace(first, name="c", unit="tokens"),
    ]
    lines = BenchReport("cpu", three).to_text().splitlines()
    assert [("1.00 x" in a, "1.50 x" in a) for a in lines[2:4]] == [(True, False), (False, True)]
    assert lines[-1].split() == [
        "c",
        "1.0",
        "kB",
        "1.0",
        "kB",
        "2.0",
        "kB",
        "6.0",
        "kB",
        "10.0",
        "kB",
        "11.0",
        "kB",
    ]


def test_rates_and_durations_as_text() -> None:
    assert [rate(v, "tokens") for v in (0.4211, 8, 12345.6)] == [
        "0.421 tokens/s",
        "8 tokens/s",
        "12,346 tokens/s",
    ]
    assert [seconds_of(v) for v in (0.01234, 1.5)] == ["12.34 ms", "1.50 s"]


def test_equal_blocks_are_one_row_of_a_dry_run(decoder_spec: Path) -> None:
    plan = dry_run(load(decoder_spec, ["model.blocks.0.repeat=5"]), "cpu")
    rows = [line.split("  ")[0] for line in plan.to_text().splitlines()]
    assert "blocks.0.mixer.qkv" in rows
    assert "blocks.1 ... blocks.4" in rows
    assert not any(row.startswith("blocks.1.") for row in rows)
    (row,) = [line for line in plan.to_text().splitlines() if line.startswith("blocks.1 ...")]
    block = sum(
        layer.parameters for layer in plan.layers if f"{layer.path}.".startswith("blocks.2.")
    )
    assert row.split()[-1] == f"{4 * block:,}"
    two = dry_run(load(decoder_spec), "cpu").to_text()
    assert "blocks.1.ffn.down" in two
    assert "alike" not in two


def test_a_share_above_the_peak_is_explained() -> None:
    memory = Memory(1000, 1000, 2000, 6000, "4 samples")
    usual = Timing(
        "a", "fp32", "contiguous", 4, 0.5, 0.6, 9, 8.0, "samples", 7, 10, 39.0, 40.0, memory, 11000
    )
    assert "MFU above" not in BenchReport("cpu", [usual]).to_text()
    faster = replace(usual, flops_per_second=50.0)
    text = BenchReport("cpu", [usual, faster]).to_text()
    assert "125 %" in text
    assert "MFU above 100 %: the machine was faster in the steps" in text
    assert faster.to_json()["mfu"] == 1.25


def test_the_peak_is_measured_before_and_after_the_steps(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([3e15, 5e15])
    monkeypatch.setattr("bigmodel_cli.bench.peak_flops", lambda *_: next(measured))
    result = cli("bench", decoder_spec, "--seconds", "0.1", "--json")
    assert result.status == 0, result.err
    assert json.loads(result.out)["benchmarks"][0]["peak_flops_per_second"] == 5e15
    assert next(measured, None) is None
