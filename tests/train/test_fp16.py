"""Training in fp16: the mean loss is scaled, what overflows changes nothing, is counted, said, and
never called done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, digests
from torch import Tensor, nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.lazy import Module
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.optim import SGDOptions
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.tasks.causal_lm import CausalLM, CausalLMOptions
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.passes import power_above
from bigmodel_cli.train.state import LossScale, TrainState
from bigmodel_cli.train.step import train_step

Cli = Callable[..., Result]
CPU = torch.device("cpu")
FP16 = ["--set", "train.precision=fp16"]


def state_of(dynamic: bool, ffn: dict[str, Any] | None = None) -> TrainState:
    torch.manual_seed(0)
    block = {"mixer": {"type": "attention", "num_heads": 2}, "ffn": ffn or {"type": "gelu"}}
    options = DecoderOptions.model_validate({"type": "decoder", "dim": 16, "blocks": [block]})
    model = Decoder(options, DatasetInfo(vocab_size=13, context=32))
    optimizer = TrainOptions(steps=1).optimizer.build(named_weights(model))
    scale = LossScale.of("fp16") if dynamic else LossScale()
    return TrainState(model, optimizer, ema_decay=0.9, loss_scale=scale)


def tokens(rows: int, length: int = 32) -> list[dict[str, Tensor]]:
    return [
        {
            "tokens": torch.randint(
                13, (rows, length + 1), generator=torch.Generator().manual_seed(rows)
            )
        }
    ]


def step(state: TrainState, batches: list[dict[str, Tensor]], precision: str) -> Any:
    options = TrainOptions.model_validate({"steps": 1, "precision": precision})
    return train_step(state, Objective(CausalLM(CausalLMOptions())), options, batches, CPU, 1e-2)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_fp16_steps_equal_fp32_ones_for_any_batch_size(rows: int) -> None:
    exact = step(state_of(False), tokens(rows), "fp32")
    state = state_of(True)
    half = step(state, tokens(rows), "fp16")
    assert half.finite
    assert state.loss_scale.skipped == 0
    assert half.norm == pytest.approx(exact.norm, rel=0.01)
    assert half.loss == pytest.approx(exact.loss, rel=0.01)


def test_a_scale_changes_no_bit_where_nothing_is_rounded() -> None:
    plain, scaled = state_of(False), state_of(True)
    for rows in (3, 5):
        batches = [{"tokens": b} for b in tokens(2 * rows)[0]["tokens"].split(rows)]
        results = [step(state, batches, "fp32") for state in (plain, scaled)]
        assert results[0] == results[1]
    pairs = zip(plain.model.parameters(), scaled.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_micro_batches_are_one_batch() -> None:
    whole, parted = state_of(True), state_of(True)
    for state in (whole, parted):  # Adam would make much of the noise in small gradients
        state.optimizer = SGDOptions(momentum=0.0, nesterov=False).build(named_weights(state.model))
    batch = tokens(8)
    batch[0]["tokens"][5:, 9:] = -1  # the micro-batches' counts differ
    parts = [{"tokens": piece} for piece in batch[0]["tokens"].split([1, 4, 3])]
    one, three = step(whole, batch, "fp32"), step(parted, parts, "fp32")
    assert one.count == three.count < 8 * 32
    assert one.norm == pytest.approx(three.norm, rel=1e-5)
    for a, b in zip(whole.model.parameters(), parted.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_unit_is_the_next_power_of_two() -> None:
    assert [power_above(n) for n in (0, 1, 2, 3, 64, 65, 130_000)] == [1, 1, 2, 4, 64, 128, 131_072]


class Normed(Module):
    """A decoder whose logits pass a batch normalisation."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.BatchNorm1d(13)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.inner(x).transpose(1, 2)).transpose(1, 2)
        return y


def test_a_step_that_overflows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ffn = {"type": "moe", "experts": 4, "balance": "bias", "balance_weight": 0.5}
    model = Normed(state_of(True, ffn).model)
    optimizer = TrainOptions(steps=1).optimizer.build(named_weights(model))
    state = TrainState(model, optimizer, ema_decay=0.9, loss_scale=LossScale.of("fp16"))
    assert step(state, tokens(3), "fp16").finite
    state.after_step()

    def everything() -> dict[str, Tensor]:
        found = {
            **dict(model.named_parameters()),
            **dict(model.named_buffers()),
            **optimizer.state_dict(),
        }
        return {
            n: t.detach().clone()
            for n, t in [*found.items(), *((f"ema.{n}", t) for n, t in state.ema.items())]
        }

    before = everything()
    honest = CausalLM.loss
    monkeypatch.setattr(CausalLM, "loss", lambda *a: (honest(*a)[0] * float("inf"), honest(*a)[1]))
    assert not step(state, tokens(5), "fp16").finite
    after = everything()
    assert [n for n in after if not torch.equal(before[n], after[n])] == []
    assert float(model.get_buffer("inner.blocks.0.ffn.load").sum()) == 0
    assert (state.loss_scale.value, state.loss_scale.skipped, optimizer.steps) == (2.0**15, 1, 1)
    assert all(part.auxiliary is None for part in state.balanced)
    monkeypatch.undo()
    assert step(state, tokens(5), "fp16").finite
    assert int(model.get_buffer("norm.num_batches_tracked")) == 2


def poison(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool]) -> None:
    """Let the losses of some calls overflow; calls are counted from 1."""
    honest, calls = CausalLM.loss, []

    def poisoned(self: Any, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        loss, count = honest(self, outputs, batch)
        return (loss * float("inf") if bad(len(calls)) else loss), count

    monkeypatch.setattr(CausalLM, "loss", poisoned)


def strict(path: Path) -> list[dict[str, Any]]:
    """The records of a log; NaN and infinities, which JSON does not have, are an error."""

    def refuse(name: str) -> None:
        pytest.fail(f"{path} has {name}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_skipped_steps_are_counted_and_said(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["pretrain", decoder_spec, *FP16, "--set", "train.checkpoint_every=2"]
    poison(monkeypatch, lambda call: call in (1, 3))
    whole = cli(*words, "--out", "whole")
    assert whole.status == 0, whole.err
    assert whole.err.count("overflow in fp16") == 1
    assert (
        "step 1: overflow in fp16; this step changed nothing, and the loss scale falls to 32,768"
        in whole.err
    )
    assert "fp16: 2 of 12 steps overflowed and changed nothing" in whole.err
    training = [r for r in strict(Path("whole/metrics.jsonl")) if "lr" in r]
    assert [r["skipped"] for r in training] == [1, 1, *[2] * 10]
    assert ["loss" in r and "grad_norm" in r for r in training] == [False, True, False, *[True] * 9]
    assert [r["loss_scale"] for r in training[:4]] == [32768, 32768, 16384, 16384]
    monkeypatch.undo()
    os.chdir(decoder_spec.parent)
    poison(monkeypatch, lambda call: call in (1, 3))
    monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
    monkeypatch.setenv("BIGMODEL_FAILPOINT", "train.step:SIGTERM:7")
    assert cli(*words, "--out", "run").status == 143
    monkeypatch.delenv("BIGMODEL_FAILPOINT")
    resumed = cli(*words, "--out", "run", "--resume")
    assert "fp16: 2 of 12 steps overflowed" in resumed.err
    assert digests(Path(resumed.out.strip())) == digests(Path(whole.out.strip()))


def test_a_run_in_which_no_step_took_effect_is_not_done(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda call: True)
    result = cli(
        "pretrain", decoder_spec, *FP16, "--out", "run", "--set", "train.validate_every=null"
    )
    assert result.status == 6
    assert result.out == ""
    assert (
        "none of the 12 steps changed anything: each overflowed in fp16, whose loss scale fell"
        " to 16" in result.err
    )
    assert "train.precision: bf16 or fp32" in result.err
    assert not list(Path("run/checkpoints").glob("step-*"))
    assert json.loads(Path("run/status.json").read_text())["code"] == 6
    assert all("loss" not in r for r in strict(Path("run/metrics.jsonl")))


def test_a_run_that_overflows_at_the_smallest_scale_fails(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda call: call > 2)
    result = cli("pretrain", decoder_spec, *FP16, "--out", "run", "--set", "train.steps=1000")
    assert result.status == 6  # 16 halvings after step 2, then ten steps in a row
    assert "step 28: the loss is inf; this step changed nothing" in result.err
