"""`--seeds`: runs of their own one after another, gone on with, stopped, and reported together."""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, digests

from bigmodel_cli.commands.shared import resolve_checkpoint
from bigmodel_cli.errors import DataError, NumericsError
from bigmodel_cli.runs import read_run
from bigmodel_cli.train import seeds

Cli = Callable[..., Result]
SHORT = ["--set", "train.steps=2", "--set", "train.validate_every=1"]


def last(run: str, metric: str) -> float:
    """A metric of the last validation of a run."""
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["val"][metric] for line in lines if "val" in line][-1]


def failing(monkeypatch: pytest.MonkeyPatch, seed: int, error: Exception) -> None:
    """Let the run of a seed end by an error."""
    honest = seeds.train

    def train(spec: Any, request: Any, signals: Any) -> Path:
        if spec.train.seed == seed:
            raise error
        return honest(spec, request, signals)

    monkeypatch.setattr(seeds, "train", train)


def test_each_seed_is_a_run_as_by_itself_and_their_mean_is_on_stderr_in_a_pipe(
    decoder_spec: Path, cli: Cli
) -> None:
    result = cli("pretrain", decoder_spec, "--seeds", "3, 1", *SHORT)
    assert result.status == 0
    runs = ["runs/decoder-seed3", "runs/decoder-seed1"]
    assert result.out.splitlines() == [f"{run}/checkpoints/step-00000002" for run in runs]
    values = [last(run, "loss") for run in runs]
    table = [line.split() for line in result.err.splitlines()[-6:]]
    assert table[0][:5] == ["seed", "best", "loss", "last", "loss"]
    assert table[3][:3] == ["mean", *[f"{statistics.mean(values):.4f}"] * 2]
    assert table[4][:6] == ["deviation", "(n", "-", "1)", *[f"{statistics.stdev(values):.4f}"] * 2]
    assert table[5][:3] == ["n", "2", "2"]
    assert cli("pretrain", decoder_spec, "--seed", 1, "--out", "alone", *SHORT).status == 0
    names = [Path(f, "checkpoints/step-00000002") for f in (runs[1], "alone")]
    assert digests(names[0]) == digests(names[1])
    run = read_run(Path("alone"))
    assert (run.state, run.step, run.total, run.parameters) == ("finished", 2, 2, 7120)
    assert run.last() is not None
    assert (run.options["train.seed"], run.warnings) == (1, [])


def test_a_resume_goes_on_with_what_is_not_finished(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["pretrain", decoder_spec, "--seeds", "0,1", "--out", "many/try", *SHORT]
    with monkeypatch.context() as patch:
        failing(patch, 1, DataError("no more data"))
        result = cli(*words)
    assert (result.status, result.out) == (3, "")
    assert "seed 1: failed; 1 of 2 runs are done, and to go on with all: " in result.err
    assert sorted(os.listdir("many")) == ["try-seed0"]
    before = Path("many/try-seed0/metrics.jsonl").stat().st_mtime_ns
    assert cli(*words).status == 2
    result = cli(*words, "--resume", "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    assert values["checkpoints"]["1"] == "many/try-seed1/checkpoints/step-00000002"
    assert values["metrics"]["last loss"]["n"] == 2
    assert values["metrics"]["last loss"]["values"]["1"] == last("many/try-seed1", "loss")
    assert Path("many/try-seed0/metrics.jsonl").stat().st_mtime_ns == before


def test_a_seed_that_diverges_is_reported_and_the_others_go_on(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 0, NumericsError("step 7: the loss is nan"))
    result = cli("pretrain", decoder_spec, "--seeds", "0,1", "--json", *SHORT)
    assert result.status == 6
    assert "seed 0: failed with status 6: step 7: the loss is nan\n" in result.err
    assert "bigmodel: --seeds: 1 of 2 runs had no finite loss (seed 0)\n" in result.err
    values = json.loads(result.out)
    assert values["failed"] == {"0": "step 7: the loss is nan"}
    assert values["metrics"]["best loss"]["deviation"] is None


def test_a_signal_stops_all_seeds(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that comes when the first run has ended and the second has not begun."""
    honest = seeds.train

    def train(*arguments: Any) -> Path:
        path = honest(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return path

    monkeypatch.setattr(seeds, "train", train)
    result = cli("pretrain", decoder_spec, "--seeds", "0,1", *SHORT)
    assert (result.status, result.out) == (143, "")
    assert os.listdir("runs") == ["decoder-seed0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0,x"], "--seeds 0,x: not whole numbers"),
        (["--seeds", "1,2,1"], "1 is given twice"),
        (["--seeds", "0", "--seed", "0"], "--seed has no effect on runs of several --seeds"),
        (
            ["--seeds", "0", "--set", "train.seed=3"],
            "--set train.seed has no effect beside --seeds",
        ),
        (["--seeds", "9" * 19], "train.seed"),
    ],
)
def test_ambiguous_seeds_are_refused(
    words: list[str], message: str, decoder_spec: Path, cli: Cli
) -> None:
    result = cli("pretrain", decoder_spec, *words)
    assert result.status == 2
    assert message in result.err
    assert not Path("runs").exists()


def test_finetuning_takes_seeds_too(decoder_spec: Path, cli: Cli) -> None:
    cli("pretrain", decoder_spec, "--out", "base", "--set", "train.steps=1")
    result = cli("finetune", "--from", "base", "--seeds", "7", "--set", "train.steps=1")
    assert (result.status, result.out) == (
        0,
        "runs/base-finetuned-seed7/checkpoints/step-00000001\n",
    )


def test_a_reader_of_one_path_is_told_of_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\nc")))
    assert resolve_checkpoint("-") == Path("a")
    assert "2 more are left out" in capsys.readouterr().err


def test_a_second_round_is_not_mixed_with_the_first_one(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("pretrain", decoder_spec, "--seeds", "0,1", *SHORT).status == 0
    with monkeypatch.context() as broken:
        failing(broken, 1, DataError("no"))
        assert cli("pretrain", decoder_spec, "--seeds", "0,1,2", *SHORT).status == 3
    result = cli("pretrain", decoder_spec, "--seeds", "0,1,2", "--resume", *SHORT)
    assert result.status == 0
    assert "the newest round is number 2: decoder-seedN-2" in result.err
    paths = [f"runs/decoder-seed{n}-2/checkpoints/step-00000002" for n in (0, 1, 2)]
    assert result.out.splitlines() == paths
