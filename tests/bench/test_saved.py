"""Results that are saved, shown and compared later; and the status of a regression."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Result

from bigmodel_cli.bench import compared
from bigmodel_cli.bench import result as results
from bigmodel_cli.bench.result import Block, Facts, Measured, Mood, Operation, Work
from bigmodel_cli.bench.saved import read, write, write_csv
from bigmodel_cli.errors import DataError

Cli = Callable[..., Result]


def saved(
    slower: float = 0.0, speed: float = 1.0, seed: int = 0, unit: str = "tokens"
) -> results.Result:
    """Three processes of a program on a machine of that speed, which the reference work shows."""
    rng = np.random.default_rng(seed)
    blocks = [
        Block(
            tuple(0.01 * (1 + slower) / speed * np.exp(rng.normal(0, 0.01, 5))),
            {"forward": (0.004,) * 5, "backward": (0.006,) * 5},
            0.07,
            0.003 / speed * float(np.exp(rng.normal(0, 0.01))),
            place,
            place % 3,
            Mood(0.0, 0.01, 2400.0),
        )
        for place in range(90)
    ]
    facts = Facts("a", "training", unit, 512.0, 8, "fp32", "contiguous", False, 7, "cpu", 2, "real")
    work = Work(1e8, 4e10, 2e10, None, [Operation("linear", 3, 1e6, 1e5, 1e-4, 2e-4)])
    return results.Result(
        [Measured(facts, blocks, work, None, 5, 6)], {"cores": 2}, ["bench"], "now"
    )


def test_a_result_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    result = saved()
    write(result, tmp_path / "a.json")
    assert read(tmp_path / "a.json").to_json() == result.to_json()
    write_csv(result, tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 450
    assert float(rows[7]["seconds"]) == result.measured[0].blocks[1].seconds[2]
    assert {row["process"] for row in rows} == {"0", "1", "2"}
    assert rows[0]["backward"] == "0.006"


@pytest.mark.parametrize(("slower", "said"), [(0.05, "slower"), (-0.05, "faster"), (0.0, "same")])
def test_a_saved_result_is_compared_whatever_the_machine_s_speed_then(
    slower: float, said: str
) -> None:
    found = compared([("x", saved()), ("y", saved(slower, 0.75, 1))])
    assert [m.facts.name for m in found.measured] == ["a (x)", "a (y)"]
    verdict = found.measured[1].verdict
    assert verdict is not None
    assert verdict.says == said
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low <= slower <= verdict.high


def test_what_is_not_alike_has_no_verdict() -> None:
    assert compared([("x", saved()), ("y", saved(unit="samples"))]).measured[1].verdict is None
    elsewhere = replace(saved(), machine={"cores": 64})
    assert compared([("x", saved()), ("y", elsewhere)]).measured[1].verdict is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[1]", "no result of bench"),
        ('{"schema_version": 1}', "of schema_version 1"),
        ('{"schema_version": 2}', "benchmarks"),
        ('{"schema_version": 2, "benchmarks": [{"facts": 3}]}', "damaged"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_files_that_are_no_results(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read(tmp_path / "a.json")


def test_one_changed_value_is_named(tmp_path: Path) -> None:
    values = json.loads(json.dumps(saved().to_json()))
    values["benchmarks"][0]["blocks"][2]["seconds"][0] = "soon"
    (tmp_path / "a.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"0\.blocks\.2\.seconds\.0"):
        read(tmp_path / "a.json")
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "b.json")


def test_the_command_fails_above_a_bound(cli: Cli, tmp_path: Path) -> None:
    for name, slower in (("a", 0.0), ("b", 0.06), ("c", 0.03)):
        write(saved(slower, seed=3), tmp_path / f"{name}.json")
    words = ("bench", "--show", "a.json", "--show")
    found = cli(*words, "b.json", "--fail-above", "5%", "--png", "p.png")
    assert found.status == 8
    assert "a (b.json) takes 6.0 % longer, more than --fail-above 5%" in found.err
    assert "a (b.json) takes 6.0 % longer than a (a.json) for each of its tokens" in found.out
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG"
    assert cli(*words, "c.json", "--fail-above", "5 %").status == 0
    assert "takes 3.0 % longer" in cli(*words, "c.json").out


@pytest.mark.parametrize(
    "words",
    [
        ("a.yaml", "--fail-above", "5%"),
        ("a.yaml", "b.yaml", "--fail-above", "much"),
        ("a.yaml", "--show", "x.json"),
        ("--show", "x.json", "--against", "y.json"),
        ("--show", "x.json", "--fail-above", "1%"),
    ],
)
def test_options_that_do_not_go_together(words: tuple[str, ...], cli: Cli) -> None:
    assert cli("bench", *words).status == 2


def test_a_bound_of_which_nothing_can_be_told_is_no_success(tmp_path: Path, cli: Cli) -> None:
    busy = saved()
    blocks = [
        replace(block, rejected="other work" if number % 3 else "")
        for number, block in enumerate(busy.measured[0].blocks)
    ]
    write(saved(), tmp_path / "a.json")
    write(replace(busy, measured=[replace(busy.measured[0], blocks=blocks)]), tmp_path / "b.json")
    words = ("bench", "--show", tmp_path / "a.json", "--show", tmp_path / "b.json")
    assert cli(*words).status == 0
    found = cli(*words, "--fail-above", "5%")
    assert found.status == 5
    assert "nothing can be told of a (b.json): other work ran" in found.err


def test_lines_of_several_targets_begin_with_their_names(
    decoder_spec: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(decoder_spec.read_text())
    command = [sys.executable, "-m", "bigmodel_cli", "bench", "decoder.yaml", "other.yaml"]
    found = subprocess.run(
        [*command, "--seconds", "0.1", "--compile", "off", "--device", "cpu"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    for name in ("decoder.yaml", "other.yaml"):
        assert f"{name}: device: cpu" in found.stderr
