"""Steps that are not waited for: without a look at the device, and equal to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.lazy import Module
from bigmodel_cli.models import MODELS
from bigmodel_cli.optim import OPTIMIZERS
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.train import loop
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import StepResult, queued_step, train_step

Cli = Callable[..., Any]
CPU = torch.device("cpu")
LOOKS = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal")


class NoReading(TorchFunctionMode):
    """Refuses to read a tensor in ways that a CPU has no operation for."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        assert name not in ("tolist", "numpy", "cpu"), f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


class NoLook(TorchDispatchMode):
    """Refuses what waits for a GPU."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.name().split(".")[0]
        assert name not in LOOKS, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


def network(kind: str) -> tuple[Module, dict[str, torch.Tensor], str]:
    """A model, a batch, and the task's type."""
    torch.manual_seed(5)
    if kind == "cnn":
        layers = [
            {"type": "conv", "channels": 3, "kernel": 3, "norm": "batch"},
            {"type": "flatten"},
            {"type": "dense", "units": "classes"},
        ]
        info = DatasetInfo(image_shape=(1, 5, 5), classes=("a", "b", "c"))
        model = MODELS[kind].model_validate({"type": kind, "layers": layers}).build(info)
        batch = {"image": torch.randn(7, 1, 5, 5), "label": torch.randint(3, (7,))}
        return model, batch, "classification"
    block = {
        "repeat": 2,
        "mixer": {"type": "attention", "num_heads": 3, "position": {"type": "rotary"}},
        "ffn": {"type": "swiglu"},
        "dropout": 0.1,
    }
    spec = {"type": "decoder", "dim": 12, "blocks": [block]}
    model = MODELS[kind].model_validate(spec).build(DatasetInfo(vocab_size=13, context=9))
    rows = torch.randint(13, (4, 10))
    rows[1, 6:] = -1
    return model, {"tokens": rows}, "causal_lm"


def state_of(model: Module, optimizer: str) -> TrainState:
    options = OPTIMIZERS[optimizer].model_validate({"type": optimizer})
    averages = OPTIMIZERS[optimizer].averages
    built = options.build(named_weights(model))
    return TrainState(model, built, ema_decay=None if averages else 0.9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["cnn", "decoder"])
def test_a_queued_step_never_looks_at_the_device(kind: str, precision: str) -> None:
    model, batch, task = network(kind)
    state = state_of(model, "adamw")
    options = TrainOptions.model_validate(
        {"steps": 3, "precision": precision, "max_grad_norm": 0.5}
    )
    objective = Objective(TASKS[task].model_validate({"type": task}).build())
    with NoLook(), NoReading():
        for _ in range(2):
            queued_step(state, objective, options, [batch, batch], CPU, 0.1)
            state.after_step()
        with pytest.raises(AssertionError, match="waits"):  # so it is seen
            train_step(state, objective, options, [batch], CPU, 0.1)


@pytest.mark.parametrize("clipped", [None, 0.3, 1e4])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "schedule_free_adamw"])
def test_a_queued_step_is_equal_to_the_bit(optimizer: str, clipped: float | None) -> None:
    found = []
    for take in (train_step, queued_step):
        model, batch, task = network("decoder")
        state = state_of(model, optimizer)
        options = TrainOptions.model_validate(
            {"steps": 3, "precision": "fp32", "max_grad_norm": clipped}
        )
        objective = Objective(TASKS[task].model_validate({"type": task}).build())
        results = [take(state, objective, options, [batch] * 2, CPU, 0.02) for _ in range(3)]
        found.append(
            (
                state,
                [r if isinstance(r, StepResult) else StepResult.of(r.tolist()) for r in results],
            )
        )
    (one, results), (other, queued) = found
    assert results == queued
    tensors = [{**s.capture()[0], **s.capture()[1]} for s in (one, other)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@contextmanager
def queueing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, a run on a CPU queues its steps, as on a GPU."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "can_queue", lambda *given: True)
        yield


def records(run: Path) -> list[dict[str, Any]]:
    """What a run recorded, without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("per_second", "elapsed", "time")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def test_a_queued_run_records_and_saves_the_same(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [
        *("--set", "train.log_every=3", "--set", "train.validate_every=4"),
        *("--set", "train.micro_batch_size=2", "--set", "train.max_grad_norm=0.5"),
    ]
    assert cli("pretrain", decoder_spec, "--out", "plain", *more).status == 0
    with queueing(monkeypatch):
        assert cli("pretrain", decoder_spec, "--out", "queued", *more).status == 0
    assert records(Path("queued")) == records(Path("plain"))
    weights = "checkpoints/last/model.safetensors"
    assert (Path("queued") / weights).read_bytes() == (Path("plain") / weights).read_bytes()


def test_a_loss_that_is_not_finite_ends_a_queued_run_alike(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = Objective.__call__, []

    def poisoned(self: Objective, model: Any, batch: Any) -> Any:
        loss, count = honest(self, model, batch)
        calls.append(1)
        return (loss * float("nan") if len(calls) == 7 else loss), count

    monkeypatch.setattr(Objective, "__call__", poisoned)
    more = ["--set", "train.validate_every=4", "--set", "train.log_every=20"]
    plain = cli("pretrain", decoder_spec, "--out", "plain", *more)
    calls.clear()
    with queueing(monkeypatch):
        queued = cli("pretrain", decoder_spec, "--out", "queued", *more)
    assert plain.status == queued.status == 6
    last = [r.err.strip().splitlines()[-1].replace("queued", "plain") for r in (plain, queued)]
    assert last[0] == last[1]
    assert "step 7: the loss is nan" in last[0]
    saved = [
        sorted(p.name for p in (Path(run) / "checkpoints").iterdir()) for run in ("plain", "queued")
    ]
    assert saved[0] == saved[1]
