"""What a resume reads beside the weights, damaged and signed anew: status 4 saying what, and
nothing of it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from tampered import STEP, change_json, change_tensors, fresh_copy, present_spec
from torch import nn

from bigmodel_cli import checkpoints
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.optim import AdamWOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.train.state import TrainState

Cli = Callable[..., Result]


def resume(cli: Cli) -> Result:
    """Go on with the committed run for a step."""
    present_spec(Path("run/checkpoints") / STEP)
    return cli("pretrain", "spec.yaml", "--out", "run", "--resume", "--set", "train.steps=61")


def test_a_checkpoint_of_format_1_is_resumed(cli: Cli) -> None:
    """Row 56: one that an earlier version wrote."""
    fresh_copy()
    result = resume(cli)
    assert result.status == 0, result.err
    assert result.out.strip() == "run/checkpoints/step-00000061"
    assert "resuming run after step 60" in result.err


def trained(ema: float | None) -> TrainState:
    """A small state after a few steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = TrainState(model, AdamWOptions().build(named_weights(model)), ema)
    for _ in range(3):
        model(torch.randn(4, 3)).square().sum().backward()
        state.optimizer.step(1e-2, 1.0)
        state.optimizer.clear()
        state.step += 1
        state.update_ema()
    state.scores, state.best = {"2": 0.5, "3": None}, 0.5
    return state


def snapshot(state: TrainState) -> dict[str, Any]:
    """All that a resume may change, as it is now."""
    weights, train, values = state.capture()
    return {
        n: t.clone() for n, t in {**weights, **{f"train.{n}": t for n, t in train.items()}}.items()
    } | {"values": values}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(v, second[n]) if torch.is_tensor(v) else v == second[n]
        for n, v in first.items()
    )


VALUES: dict[str, Any] = {
    **{
        f"no {key}": lambda v, key=key: v.pop(key)
        for key in ("step", "optimizer_steps", "scores", "best", "since_best")
    },
    **{
        f"no {key}": lambda v, key=key: v.pop(key)
        for key in ("elapsed", "loss_sum", "loss_count", "loss_scale")
    },
    "a step that is a string": lambda v: v.update(step="3"),
    "a step that is true": lambda v: v.update(step=True),
    "a step that is a fraction": lambda v: v.update(step=3.5),
    "a step below zero": lambda v: v.update(step=-3),
    "an absurd step": lambda v: v.update(step=10**30),
    "more updates than steps": lambda v: v.update(optimizer_steps=4),
    "updates below zero": lambda v: v.update(optimizer_steps=-1),
    "scores that are a list": lambda v: v.update(scores=[1]),
    "a score that is a string": lambda v: v.update(scores={"2": "0.5"}),
    "a score of a word": lambda v: v.update(scores={"two": 0.5}),
    "a best that is a list": lambda v: v.update(best=[0.5]),
    "a best that is NaN": lambda v: v.update(best=float("nan")),
    "patience below zero": lambda v: v.update(since_best=-1),
    "time below zero": lambda v: v.update(elapsed=-1.0),
    "an infinite loss": lambda v: v.update(loss_sum=float("inf")),
    "a count below zero": lambda v: v.update(loss_count=-1),
    "a scale of zero": lambda v: v.update(loss_scale=0.0),
    "a scale that is NaN": lambda v: v.update(loss_scale=float("nan")),
    "a list of good steps": lambda v: v.update(loss_scale_good_steps=[]),
}
TENSORS: dict[str, Any] = {
    "a moment missing": lambda t: t.pop("optimizer.exp_avg.0.weight"),
    "a moment too many": lambda t: t.update({"optimizer.exp_avg.9.weight": torch.zeros(2, 3)}),
    "a moment of another shape": lambda t: t.update(
        {"optimizer.exp_avg.0.weight": torch.zeros(3, 2)}
    ),
    "a moment that is one number": lambda t: t.update(
        {"optimizer.exp_avg.0.weight": torch.zeros(())}
    ),
    "a moment of another dtype": lambda t: t.update(
        {"optimizer.exp_avg.0.weight": torch.zeros(2, 3).double()}
    ),
    "a raw weight missing": lambda t: t.pop("raw.0.weight"),
    "a raw weight of another shape": lambda t: t.update({"raw.0.weight": torch.zeros(3)}),
    "a raw weight of another dtype": lambda t: t.update({"raw.0.weight": torch.zeros(2, 3).half()}),
    "a tensor too many": lambda t: t.update({"evil": torch.zeros(3)}),
    "no random state": lambda t: t.pop("rng.cpu"),
    "a random state that is short": lambda t: t.update(
        {"rng.cpu": torch.zeros(10, dtype=torch.uint8)}
    ),
    "a random state of numbers": lambda t: t.update({"rng.cpu": torch.zeros(5056)}),
    "a random state of zeros": lambda t: t.update(
        {"rng.cpu": torch.full((5056,), 255, dtype=torch.uint8)}
    ),
}


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
def test_values_to_resume_with_are_typed_and_nothing_is_half_restored(change: Any) -> None:
    """Row 78."""
    weights, train, values = trained(0.9).capture()
    change(values)
    state = trained(0.9)
    state.model[0].weight.data.add_(1)  # type: ignore[operator, union-attr]
    before = snapshot(state)
    with pytest.raises(CheckpointError, match=r"state.json: \w+.*; use another checkpoint"):
        state.restore(weights, train, values)
    assert same(snapshot(state), before)


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_tensors_to_resume_with_fit_or_nothing_is_restored(change: Any) -> None:
    """Row 78: weights, moments, averages and random state stay as they were."""
    weights, train, values = trained(0.9).capture()
    change(train)
    state = trained(0.9)
    state.model[0].weight.data.add_(1)  # type: ignore[operator, union-attr]
    torch.manual_seed(5)
    before = snapshot(state)
    with pytest.raises(
        CheckpointError, match=r"train_state.safetensors: |optimizer is not this run's"
    ):
        state.restore(weights, train, values)
    assert same(snapshot(state), before)


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
def test_weights_of_another_shape_restore_nothing(name: str) -> None:
    """Rows 16 and 78."""
    weights, train, values = trained(None).capture()
    weights = {**weights, name: torch.zeros(7)}
    state = trained(None)
    state.model[0].weight.data.add_(1)  # type: ignore[operator, union-attr]
    before = snapshot(state)
    with pytest.raises(
        CheckpointError,
        match=rf"model.safetensors: tensor {name}: this run has .*, the checkpoint float32 \[7\]",
    ):
        state.restore(weights, train, values)
    assert same(snapshot(state), before)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_captured_state_is_restored(ema: float | None) -> None:
    """Row 78: nothing good is refused."""
    first = trained(ema)
    kept = snapshot(first)
    weights, train, values = first.capture()
    other = trained(ema)
    other.model[0].weight.data.add_(1)  # type: ignore[operator, union-attr]
    other.restore(weights, train, json.loads(json.dumps(values)))
    assert same(snapshot(other), kept)


RESUMED: dict[str, tuple[str, Any, str]] = {
    "no fingerprint": (
        "state.json",
        lambda v: v.pop("fingerprint") and None,
        "--resume: the data is not",
    ),
    "another step than the manifest's": (
        "state.json",
        lambda v: v.update(step=59),
        "step: 59, and manifest.json says 60",
    ),
    "a step that is a word": (
        "state.json",
        lambda v: v.update(step="60"),
        "step: '60', and manifest.json says 60",
    ),
    "no scores": (
        "state.json",
        lambda v: v.pop("scores") and None,
        "state.json: scores: Field required",
    ),
    "a list": ("state.json", lambda v: [1], "state.json: damaged (not a mapping)"),
    "no moments": (
        "train_state.safetensors",
        lambda t: t.clear(),
        "the checkpoint's optimizer is not this run's",
    ),
    "no random state": (
        "train_state.safetensors",
        lambda t: t.pop("rng.cpu"),
        "tensor rng.cpu: this run has uint8",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), RESUMED.values(), ids=RESUMED)
def test_faulty_state_is_reported_on_resume(name: str, change: Any, message: str, cli: Cli) -> None:
    """Row 78: status 4, and the checkpoint stays as it is."""
    checkpoint = fresh_copy()
    change = change_json if name == "state.json" else change_tensors, change
    change[0](checkpoint, name, change[1])
    held = sorted(p.name for p in checkpoint.parent.iterdir())
    result = resume(cli)
    assert (result.status, result.out) == (4, ""), result.err
    assert message in result.err
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == held
    if name != "state.json":
        # its weights can still be used
        assert checkpoints.read(checkpoint, train_state=False).step == 60
