"""What a run says of its optimizer and its schedule, and what an optimizer's state that does not
fit is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result
from torch import nn

from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.optim import MuonOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.train.state import TrainState

Cli = Callable[..., Result]


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


def test_a_run_and_a_dry_run_say_what_moves_the_weights(decoder_spec: Path, cli: Cli) -> None:
    muon = sets(
        "train.optimizer={type: muon, weight_decay: 0.1, rest: {weight_decay: 0.0}}",
        "train.steps=2",
    )
    run = cli("pretrain", decoder_spec, *muon, "--out", "run")
    assert run.status == 0, run.err
    said = next(text for text in run.err.splitlines() if text.startswith("optimizer: "))
    assert "muon 8 tensors (6,144 numbers)" in said
    assert said.endswith("weight decay on 8 of 28 tensors")
    plan = json.loads(cli("pretrain", decoder_spec, *muon, "--dry-run", "--json").out)
    weights = {w["name"]: w for w in plan["weights"]}
    assert len(weights) == 28
    assert {n for n, w in weights.items() if w["optimizer"] == "muon"} == {
        f"blocks.{i}.{part}.weight"
        for i in (0, 1)
        for part in ("mixer.qkv", "mixer.out", "ffn.up", "ffn.down")
    }
    assert weights["embedding.weight"]["optimizer"] == "adamw"
    assert not weights["embedding.weight"]["decayed"]
    frozen = json.loads(
        cli(
            "pretrain", decoder_spec, *muon, *sets("init.freeze=[blocks.0]"), "--dry-run", "--json"
        ).out
    )
    assert {w["name"] for w in frozen["weights"] if w["optimizer"] is None} == {
        name for name in weights if name.startswith("blocks.0.")
    }


def test_a_schedule_that_does_not_fit_the_run_is_reported(decoder_spec: Path, cli: Cli) -> None:
    words = [
        "pretrain",
        decoder_spec,
        *sets("train.schedule={type: cosine, warmup: 19, final: 0.1}", "train.steps=4"),
    ]
    for end in (["--dry-run"], ["--out", "run"]):
        result = cli(*words, *end)
        assert result.status == 0
        assert (
            "train.schedule.warmup: 19 steps of warm-up are not fewer than the run's 4"
            in result.err
        )
        assert "to 20 % of its peak" in result.err


def test_the_last_step_has_final_and_a_longer_run_says_what_becomes_of_it(
    decoder_spec: Path, cli: Cli
) -> None:
    schedule = sets("train.schedule={type: linear, final: 0.25}", "train.optimizer.lr=0.004")
    first = cli("pretrain", decoder_spec, "--out", "run", *schedule, *sets("train.steps=4"))
    assert "schedule" not in first.err
    longer = cli(
        "pretrain", decoder_spec, "--out", "run", *schedule, *sets("train.steps=7"), "--resume"
    )
    assert "the run has 7 steps instead of 4: its schedule is bent" in longer.err
    assert "goes on at 50 % of its peak" in longer.err
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    rates = [r["lr"] for r in records if "lr" in r]
    assert rates == pytest.approx([0.004, 0.003, 0.002, 0.001, 0.002, 0.0015, 0.001])
    again = cli(
        "pretrain", decoder_spec, "--out", "run", *schedule, *sets("train.steps=7"), "--resume"
    )
    assert "bent" not in again.err


def test_an_optimizer_state_of_other_weights_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state = TrainState(model, MuonOptions().build(named_weights(model)))
    weights, train, values = state.capture()
    train["optimizer.exp_avg.0.weight"] = train.pop("optimizer.momentum.0.weight")
    weights = {name: tensor + 1 for name, tensor in weights.items()}
    before = model[0].weight.detach().clone()
    with pytest.raises(
        CheckpointError, match=r"2 tensors are in one of them alone, such as exp_avg\.0\.weight"
    ):
        state.restore(weights, train, values)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "train.patience=2",
            "train.patience counts validations, and there is only one, at the end",
        ),
        (
            "train.average_last=3",
            "train.average_last: 3 checkpoints, and only one is saved, at the end",
        ),
    ],
)
def test_options_that_count_validations_or_checkpoints_need_several(
    option: str, message: str, decoder_spec: Path, cli: Cli
) -> None:
    once = [
        "--set",
        "train.validate_every=null",
        "--set",
        "train.checkpoint_every=null",
        "--set",
        option,
    ]
    for words in ([], ["--dry-run"]):
        refused = cli("pretrain", decoder_spec, "--out", "run", *once, *words)
        assert (refused.status, message in refused.err) == (2, True), refused.err
    assert not Path("run/checkpoints").exists()


def test_batch_normalisation_of_one_value_is_refused_in_training_and_planned_for_more(
    cli: Cli, tmp_path: Path
) -> None:
    spec = tmp_path / "deep.yaml"
    spec.write_text(
        """\
model:
  type: cnn
  layers:
    - {type: conv, channels: 4, kernel: 8, padding: valid, norm: batch}
    - {type: flatten}
    - {type: dense, units: classes}
data: {type: digits}
task: {type: classification}
train: {steps: 1, batch_size: 1, precision: fp32, memory_format: contiguous, compile: "off"}
""",
        encoding="utf-8",
    )
    plan = cli("pretrain", spec, "--dry-run", "--json", "--set", "train.batch_size=2")
    assert plan.status == 0, plan.err
    assert (
        json.loads(plan.out)["training_flops_per_sample"] > json.loads(plan.out)["flops_per_sample"]
    )
    for last in ("--dry-run", "--json"):
        result = cli("pretrain", spec, "--out", "run", last)
        assert (result.status, Path("run").exists()) == (2, False)
        assert "train.batch_size: batch normalisation has one value per channel" in result.err
    assert cli("pretrain", spec, "--out", "run", "--set", "train.batch_size=2").status == 0
