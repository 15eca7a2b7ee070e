"""`bigmodel bench` of several networks: their names, how they compare, and the memory that a dry
run foresees.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from bigmodel_cli.bench import Request, bench, to_text
from bigmodel_cli.bench import result as results
from bigmodel_cli.bench.result import Block, Facts, Measured, Work
from bigmodel_cli.bench.worker import Asked, Process
from bigmodel_cli.console import rate, seconds_of, short_names
from bigmodel_cli.errors import SpecError
from bigmodel_cli.spec import load
from bigmodel_cli.train.rehearsal import dry_run

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
        foreseen = timing["facts"]["foreseen"]
        assert foreseen == dry_run(load(spec), "cpu").to_json()["memory"]
        assert foreseen["peak"] == pytest.approx(timing["peak_tensors"], rel=0.1)


FORESEEN = {"weights": 1000, "gradients": 1000, "peak": 10000, "batch": "4 samples"}


def measured(name: str, unit: str, seconds: float, useful: float = 10.0) -> Measured:
    facts = Facts(
        name, "training", unit, 4, 4, "fp32", "contiguous", False, 7, "cpu", 2, "random", FORESEEN
    )
    return Measured(
        facts, [Block((seconds,) * 9)], Work(useful, 40.0, 50.0), None, 11000, 2_000_000
    )


def written(*found: Measured) -> str:
    return to_text(results.Result(found, {}, (), ""))


def test_rates_of_other_units_are_not_compared() -> None:
    first = measured("a", "samples", 0.5)
    text = written(first, measured("b", "tokens", 0.004))
    assert "to the first" not in text
    assert "8 samples/s" in text
    assert "1,000 tokens/s" in text
    assert "500.00 ms" in text
    three = [first, measured("b", "samples", 0.25), measured("c", "tokens", 0.5)]
    lines = written(*three).splitlines()
    assert [("1.00 x" in a, "2.00 x" in a) for a in lines[2:4]] == [(True, False), (False, True)]
    assert lines[-1].split() == [
        "c",
        *["1.0", "kB", "1.0", "kB", "10.0", "kB", "11.0", "kB", "2.0", "MB"],
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
    usual = measured("a", "samples", 0.5, useful=19.5)
    assert "MFU above" not in written(usual)
    faster = measured("a", "samples", 0.5, useful=25.0)
    text = written(usual, faster)
    assert "125 %" in text
    assert "MFU above 100 %: the machine was faster in the steps" in text
    assert faster.share == 1.25


def test_several_targets_are_timed_in_turns_forwards_and_backwards(
    decoder_spec: Path, tmp_path: Path
) -> None:
    text = decoder_spec.read_text().replace("text.txt", "elsewhere.txt")
    (tmp_path / "other.yaml").write_text(text.replace("{type: characters}", "bytes"))
    result = bench(Request(["decoder.yaml", "other.yaml"], ["train.precision=fp32"], "cpu", 0.6))
    order = {b.place: (m.facts.name, b.process) for m in result.measured for b in m.blocks}
    forwards = [(name, process) for process in range(3) for name in ("decoder", "other")]
    rounds = [[order[6 * r + k] for k in range(6)] for r in range(len(order) // 6)]
    assert rounds[:2] == [forwards, forwards[::-1]][: len(rounds)]
    assert result.measured[1].verdict is not None
    for found in result.measured:
        for block in found.blocks:
            assert set(block.parts) == {"wait", "forward", "backward", "update", "rest"}
            for step in zip(block.seconds, *block.parts.values(), strict=True):
                assert step[0] == pytest.approx(sum(step[1:]))
    assert [m.facts.data for m in result.measured] == ["real", "random"]


def test_a_fault_in_another_process_is_the_same_fault(decoder_spec: Path) -> None:
    with pytest.raises(SpecError, match=r"train\.batch_size"):
        Process(Asked("decoder.yaml", changes=["train.batch_size=-1"]))
