"""How a run is set up: `bench` and a dry run begin as training does, from a checkpoint and with
frozen weights too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result
from safetensors.torch import load_file

Cli = Callable[..., Result]


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


@pytest.fixture
def start(decoder_spec: Path, cli: Cli) -> list[str]:
    """Options of a run that begins with the weights of another, on a shorter text of fewer
    characters.
    """
    assert cli("pretrain", decoder_spec, "--out", "base", *sets("train.steps=1")).status == 0
    Path("few.txt").write_text("all is small text " * 200)
    return sets(
        "init={checkpoint: base, freeze: ['blocks.0.*']}",
        "data.files=['few.txt']",
        "data.context=8",
        "train.steps=1",
    )


def test_bench_and_a_dry_run_begin_as_training_does(
    decoder_spec: Path, start: list[str], cli: Cli
) -> None:
    """The tokens and the positions are those of the checkpoint: more than the new data has."""
    run = cli("pretrain", decoder_spec, *start, "--out", "run")
    assert run.status == 0, run.err
    weights = load_file(Path(run.out.strip(), "model.safetensors"))
    plan = json.loads(cli("pretrain", decoder_spec, *start, "--dry-run", "--json").out)
    bench = cli("bench", decoder_spec, *start, "--seconds", "0.1", "--json")
    (timing,) = json.loads(bench.out)["benchmarks"]
    assert (
        plan["parameters"]
        == timing["facts"]["parameters"]
        == sum(t.numel() for t in weights.values())
    )
    line = next(text for text in run.err.splitlines() if text.startswith("weights: "))
    assert line in bench.err.splitlines()
    base = load_file("base/checkpoints/last/model.safetensors")
    assert all(t.equal(base[n]) for n, t in weights.items() if n.startswith("blocks.0."))


def test_bench_of_a_checkpoint_needs_nothing_that_it_began_with(
    decoder_spec: Path, start: list[str], cli: Cli
) -> None:
    assert cli("pretrain", decoder_spec, *start, "--out", "run").status == 0
    shutil.rmtree("base")
    assert cli("bench", "run", "--seconds", "0.1", "--json").status == 0
    gone = cli("bench", decoder_spec, *start)
    assert (gone.status, gone.err.count("base: no such checkpoint")) == (4, 1)


def test_bench_refuses_what_training_refuses(decoder_spec: Path, cli: Cli) -> None:
    changes = sets("train.patience=2", "data.val_fraction=0", "train.validate_every=1")
    refused = [
        cli(*words, decoder_spec, *changes) for words in (("pretrain", "--out", "run"), ("bench",))
    ]
    assert [result.status for result in refused] == [2, 2]
    assert all(
        "train.patience: there is no validation by which to stop" in result.err
        for result in refused
    )
