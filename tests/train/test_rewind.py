"""train.rewind: where the loss jumps the run goes back to the last checkpoint and past the batches;
said, logged, resumable.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, digests, losses
from torch import Tensor

from bigmodel_cli.tasks.causal_lm import CausalLM
from bigmodel_cli.tasks.classification import Classification

Cli = Callable[..., Result]
REWIND = ["--set", "train.rewind={spike: 2.0, window: 3, most: 1}", "--set", "train.steps=12"]


class Killed(BaseException):
    """As a kill: nothing is written after it."""


def poison(
    patch: pytest.MonkeyPatch,
    task: type,
    bad: set[int],
    factor: float,
    killed_at: int = 0,
    stopped_at: int = 0,
) -> list[int]:
    """The losses of the batches with these numbers (by what is in them: batches are told apart) are
    `factor` times as large.
    """
    honest: Any = task.loss  # type: ignore[attr-defined]
    calls: list[int] = []
    known: list[float] = ORDER

    def loss(self: Any, outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        mark = float(batch["_key" if "_key" in batch else "key"].double().sum())
        if mark not in known:
            known.append(mark)
        calls.append(known.index(mark))
        if len(calls) == killed_at:
            raise Killed
        if len(calls) == stopped_at:
            os.kill(os.getpid(), signal.SIGTERM)
        total, count = honest(self, outputs, batch)
        return (total * factor if calls[-1] in bad else total), count

    patch.setattr(task, "loss", loss)
    return calls


ORDER: list[float] = []


@pytest.fixture(autouse=True)
def _fresh_order() -> None:
    ORDER.clear()


def rewinds(run: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "rewind" in line]


@pytest.mark.parametrize("factor", [50.0, float("nan")], ids=["a spike", "not a number"])
def test_a_spike_rewinds_to_a_checkpoint_and_skips_the_batches(
    factor: float, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 43: steps 5 and 6 are taken back, batches 5 to 7 are not seen again, and all twelve steps
    are made.
    """
    calls = poison(monkeypatch, CausalLM, {6}, factor)
    result = cli("pretrain", decoder_spec, "--out", "run", *REWIND)
    assert result.status == 0, result.err
    assert calls == [*range(7), *range(7, 15)]
    assert "step 7: the loss is" in result.err
    assert "going back to step 4, and past 3 batches (1 of 1 times)" in result.err
    (record,) = rewinds("run")
    assert (record["step"], record["rewind"]["from"], record["rewind"]["batches"]) == (4, 7, 3)
    assert sorted(losses(Path("run"))) == list(range(1, 13))
    state = json.loads(Path(result.out.strip(), "state.json").read_text())
    assert (state["step"], state["passed"], state["rewinds"]) == (12, 3, 1)


@pytest.mark.parametrize(
    ("family", "killed_at"),
    [("decoder_spec", 8), ("decoder_spec", 14), ("cnn_spec", 14)],
    ids=[
        "decoder, right after going back",
        "decoder, after the next checkpoint",
        "CNN, after the next checkpoint",
    ],
)
def test_a_run_killed_after_going_back_resumes_to_the_same_bits(
    family: str,
    killed_at: int,
    request: pytest.FixtureRequest,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 43: deterministic, also with dropout, augmentation, statistics and averages."""
    spec = request.getfixturevalue(family)
    task = CausalLM if family == "decoder_spec" else Classification
    words = ["pretrain", spec, *REWIND]
    with monkeypatch.context() as patch:
        poison(patch, task, {6}, 50.0)
        whole = cli(*words, "--out", "whole")
    assert whole.status == 0, whole.err
    with monkeypatch.context() as patch:
        poison(patch, task, {6}, 50.0, killed_at)
        with pytest.raises(Killed):
            cli(*words, "--out", "run")
    with monkeypatch.context() as patch:
        poison(patch, task, {6}, 50.0)
        resumed = cli(*words, "--out", "run", "--resume")
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(Path(whole.out.strip()))
    assert losses(Path("run")) == losses(Path("whole"))
    assert rewinds("run") == rewinds("whole")
    assert len(rewinds("run")) == 1


@pytest.mark.parametrize("stopped_at", [3, 6], ids=["before the first checkpoint", "after it"])
def test_a_resumed_run_rewinds_as_an_uninterrupted_one(
    stopped_at: int, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 4 and 43: not to the checkpoint of the stop, which takes no other's place and is gone
    then.
    """
    bad, steps = ({3}, "train.steps=8") if stopped_at == 3 else ({6}, "train.steps=12")
    sets = ["--set", "train.keep_last=1", "--set", steps]
    with monkeypatch.context() as patch:
        poison(patch, CausalLM, bad, 50.0)
        whole = cli("pretrain", decoder_spec, "--out", "whole", *REWIND, *sets)
    assert whole.status == 0, whole.err
    with monkeypatch.context() as patch:
        poison(patch, CausalLM, bad, 50.0, stopped_at=stopped_at)
        stopped = cli("pretrain", decoder_spec, "--out", "run", *REWIND, *sets)
    assert stopped.status == 143, stopped.err
    with monkeypatch.context() as patch:
        poison(patch, CausalLM, bad, 50.0)
        resumed = cli("pretrain", "--resume", "--out", "run")
    assert resumed.status == 0, resumed.err
    assert rewinds("run") == rewinds("whole")
    assert len(rewinds("run")) == 1
    assert digests(Path(resumed.out.strip())) == digests(Path(whole.out.strip()))
    assert losses(Path("run")) == losses(Path("whole"))
    assert set(os.listdir("run/checkpoints")) == set(os.listdir("whole/checkpoints"))


def test_one_spike_too_many_ends_the_run(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 43: after `most` times it is refused with 6; the last checkpoint stays as it was."""
    poison(monkeypatch, CausalLM, {6, 9}, 50.0)
    result = cli("pretrain", decoder_spec, "--out", "run", *REWIND)
    assert result.status == 6
    assert (
        "the run went back 1 times already (train.rewind.most); lower train.optimizer.lr"
        in result.err
    )
    assert sorted(p.name for p in Path("run/checkpoints").glob("step-*"))[-1] == "step-00000004"
    again = cli(
        "pretrain",
        decoder_spec,
        "--out",
        "run",
        "--resume",
        *REWIND,
        "--set",
        "train.rewind.most=2",
    )
    assert again.status == 0, again.err
    assert [r["rewind"]["number"] for r in rewinds("run")] == [1, 2]


def test_before_another_checkpoint_the_run_goes_back_to_its_first_weights(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 43: a run that may go back saves before its first step, and no average takes that in."""
    poison(monkeypatch, CausalLM, {3}, 50.0)
    result = cli("pretrain", decoder_spec, "--out", "run", *REWIND, "--set", "train.average_last=9")
    assert result.status == 0, result.err
    assert "going back to step 0, and past 4 batches" in result.err
    assert "averaging the weights of the last 3 checkpoints, from step 4" in result.err


def test_rewind_needs_checkpoints(decoder_spec: Path, cli: Cli) -> None:
    """Row 43."""
    result = cli("pretrain", decoder_spec, *REWIND, "--set", "train.validate_every=null")
    assert result.status == 2
    assert "train.rewind goes back to the last checkpoint, and only one is saved" in result.err


def test_without_rewind_a_spike_changes_nothing(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 43: it is off by default."""
    calls = poison(monkeypatch, CausalLM, {6}, 50.0)
    assert cli("pretrain", decoder_spec, "--out", "run").status == 0
    assert calls == list(range(12))
    assert torch.tensor(losses(Path("run"))[7]) > 20
