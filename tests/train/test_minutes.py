"""A run by the clock: its schedule follows the time that it trained, and a resume goes on with what
is left of it.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Result, digests

from bigmodel_cli.spec import load
from bigmodel_cli.train import loop
from bigmodel_cli.train.rehearsal import dry_run

Cli = Callable[..., Result]
CLOCK = (
    "--set",
    "train.minutes=0.4",
    "--set",
    "train.log_every=1",
    "--set",
    "train.validate_every=5",
)
COSINE = ("--set", "train.schedule={type: cosine, warmup: 3}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The loop's clock, which it reads three times in a step: once for the step, twice for what
    does not count.
    """
    found = SimpleNamespace(now=0.0, pace=lambda now: 1.0, calls=0, at={})

    def perf_counter() -> float:
        found.calls += 1
        found.at.pop(found.calls, lambda: None)()
        found.now += found.pace(found.now)
        return float(found.now)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=perf_counter))
    return found


def records(run: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def last(run: str) -> Path:
    return (Path(run) / "checkpoints" / "last").resolve()


def test_at_an_even_pace_it_is_the_run_of_as_many_steps(
    decoder_spec: Path, cli: Cli, clock: SimpleNamespace
) -> None:
    result = cli("pretrain", decoder_spec, "--out", "timed", *CLOCK, *COSINE)
    assert result.status == 0, result.err
    assert "0.4 minutes of training, without validations" in result.err
    assert "not exactly repeatable" in result.err
    assert "0.4 minutes of training are over, after 12 steps" in result.err
    steps = ("--set", "train.steps=12")
    assert (
        cli("pretrain", decoder_spec, "--out", "counted", *CLOCK[2:], *steps, *COSINE).status == 0
    )
    assert [r["lr"] for r in records("timed")] == [r["lr"] for r in records("counted")]
    assert (
        digests(last("timed"))["model.safetensors"] == digests(last("counted"))["model.safetensors"]
    )
    # without the validations
    assert [r["elapsed"] for r in records("timed")] == [2.0 * step for step in range(1, 13)]


def test_the_learning_rate_follows_the_clock_where_the_pace_changes(
    decoder_spec: Path, cli: Cli, clock: SimpleNamespace
) -> None:
    clock.pace = lambda now: 0.5 if now < 12 else 2.0
    sets = ("--set", "train.schedule={type: linear}", "--set", "train.optimizer.lr=0.01")
    assert cli("pretrain", decoder_spec, "--out", "run", *CLOCK, *sets).status == 0
    found = records("run")
    assert found[-1]["elapsed"] >= 24 > found[-2]["elapsed"]
    paces = [b["elapsed"] - a["elapsed"] for a, b in itertools.pairwise(found)]
    assert min(paces) < 1.1
    assert max(paces) > 3
    for before, record in itertools.pairwise(found):
        left = 1 - before["elapsed"] / 24
        # whole steps are foreseen
        assert record["lr"] == pytest.approx(0.01 * left, abs=0.01 * 2 / record["step"])


def test_a_run_that_was_stopped_goes_on_with_what_is_left(
    decoder_spec: Path, cli: Cli, clock: SimpleNamespace
) -> None:
    whole = cli("pretrain", decoder_spec, "--out", "whole", *CLOCK, *COSINE)
    assert whole.status == 0
    clock.calls, clock.at = 0, {13: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    stopped = cli("pretrain", decoder_spec, "--out", "run", *CLOCK, *COSINE)
    assert stopped.status == 143
    assert "stopped at step 4, after 0.13 of 0.4 minutes of training; checkpoint" in stopped.err
    result = cli("pretrain", "--resume", "--out", "run")
    assert result.status == 0, result.err
    assert last("run").name == "step-00000012"
    assert records("run")[-1]["elapsed"] == 24
    assert digests(last("run"))["model.safetensors"] == digests(last("whole"))["model.safetensors"]
    done = cli("pretrain", "--resume", "--out", "run")
    assert (
        "is finished, at step 12: there is nothing to do; --set train.minutes=0.8 goes on with it"
        in done.err
    )
    longer = cli("pretrain", "--resume", "--out", "run", "--set", "train.minutes=0.5")
    assert "the run has 15 steps instead of 12: its schedule is bent" in longer.err
    assert last("run").name == "step-00000015"
    counted = cli("pretrain", "--resume", "--out", "run", "--set", "train.steps=16")
    assert "train.steps: 16 is taken instead of train.minutes: 0.5" in counted.err
    assert last("run").name == "step-00000016"


def test_steps_epochs_and_minutes_exclude_one_another(
    decoder_spec: Path, cli: Cli, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = load(decoder_spec, ["train.minutes=2.5"])
    assert "train.minutes: 2.5 is taken instead of train.steps: 12" in capfd.readouterr().err
    plan = dry_run(spec, "cpu")
    assert "steps             as many as 2.5 minutes of training take" in plan.to_text()
    assert (plan.to_json()["steps"], plan.to_json()["minutes"]) == (None, 2.5)
    both = ("--set", "train.minutes=1", "--set", "train.epochs=1")
    assert "give either epochs or minutes, not both" in cli("pretrain", decoder_spec, *both).err
    none = cli("pretrain", decoder_spec, "--set", "train.steps=null")
    assert "give steps, epochs or minutes" in none.err


def test_a_warm_up_longer_than_the_minutes_is_reported(
    decoder_spec: Path, cli: Cli, clock: SimpleNamespace
) -> None:
    sets = ("--set", "train.schedule={type: cosine, warmup: 20}")
    result = cli("pretrain", decoder_spec, "--out", "run", *CLOCK, *sets)
    assert (
        "at the rate so far: train.schedule.warmup: 20 steps of warm-up are not fewer than the"
        " run's 12" in result.err
    )
    assert math.isclose(records("run")[-1]["lr"] / records("run")[0]["lr"], 12)


def test_averages_and_loader_workers_work_by_the_clock(
    cnn_spec: Path, cli: Cli, clock: SimpleNamespace
) -> None:
    sets = (
        "--set",
        "train.average_last=2",
        "--set",
        "train.checkpoint_every=4",
        "--set",
        "data.workers=1",
    )
    result = cli("pretrain", cnn_spec, "--out", "run", *CLOCK, *sets)
    assert result.status == 0, result.err
    assert "averaging the weights of the last 2 checkpoints" in result.err
