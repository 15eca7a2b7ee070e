"""Steps that are recorded and repeated are those that would be taken else.

A CPU has no such recordings: here one calls the recorded function again, which reads and writes the
same tensors. tests/cuda has those of a GPU.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import random_batch
from bigmodel_cli.models import MODELS
from bigmodel_cli.optim import OPTIMIZERS
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.train.graphs import BEFORE, Graphs
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import queued_step

CPU = torch.device("cpu")
IMAGES = DatasetInfo(image_shape=(3, 9, 7), classes=tuple("abcde"))
TEXT = DatasetInfo(vocab_size=23, context=11)
MODEL: dict[str, Any] = {
    "images": {
        "type": "cnn",
        "layers": [
            {"type": "conv", "channels": 6, "norm": "batch"},
            {"type": "conv", "channels": 5},
            {"type": "flatten"},
            {"type": "dense", "units": "classes"},
        ],
    },
    "text": {
        "type": "decoder",
        "dim": 12,
        "blocks": [
            {
                "repeat": 2,
                "mixer": {"type": "attention", "num_heads": 3, "position": "rotary"},
                "ffn": "gelu",
                "dropout": 0.0,
            }
        ],
    },
}
TASK = {"images": "classification", "text": "causal_lm"}
OPTIMIZER: dict[str, dict[str, Any]] = {
    "adamw": {"type": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "sgd": {"type": "sgd", "lr": 0.05, "weight_decay": 0.01},
    "muon": {"type": "muon", "lr": 0.02, "weight_decay": 0.1, "rest": {"lr": 0.003}},
}


class Again:
    """Calls what it recorded."""

    def __init__(self, slow: float = 0.0) -> None:
        self.slow = slow

    def record(self, what: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.what, chance = what, torch.get_rng_state()
        self.result = what()
        torch.set_rng_state(chance)  # on a GPU nothing runs while it is recorded
        return self.result

    def replay(self) -> None:
        time.sleep(self.slow)
        self.result.copy_(self.what())


class Looks(Again):
    def record(self, what: Callable[[], torch.Tensor]) -> torch.Tensor:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


def started(
    kind: str, optimizer: str, starts: Callable[[str], int] = lambda name: 0, dropout: float = 0.0
) -> tuple[TrainState, Objective]:
    torch.manual_seed(5)
    info = IMAGES if kind == "images" else TEXT
    values = copy.deepcopy(MODEL[kind])
    if kind == "text":
        values["blocks"][0]["dropout"] = dropout
    model = MODELS[values["type"]].model_validate(values).build(info)
    weights = [replace(w, start=starts(w.name)) for w in named_weights(model)]
    built = OPTIMIZERS[optimizer].model_validate(OPTIMIZER[optimizer]).build(weights)
    task = TASKS[TASK[kind]].model_validate({"type": TASK[kind]}).build(info)
    return TrainState(model, built, ema_decay=0.9), Objective(task)


def batches(kind: str, count: int, rows: int = 4) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(7)
    info = IMAGES if kind == "images" else TEXT
    task = TASKS[TASK[kind]].model_validate({"type": TASK[kind]}).build(info)
    return [random_batch(info, task.reads, rows, CPU) for _ in range(count)]


def course(
    take: Callable[..., torch.Tensor], state: TrainState, objective: Objective, kind: str,
    steps: int = 12, **options: Any,
) -> list[torch.Tensor]:  # fmt: skip
    """Steps of two micro-batches each, at rates that differ; the numbers that come out, and all of
    the state.
    """
    values = {"steps": steps, "precision": "fp32", "max_grad_norm": 0.5, **options}
    own, given = TrainOptions.model_validate(values), batches(kind, 2 * steps)
    torch.manual_seed(11)
    found = []
    for step in range(steps):
        pair, lr = given[2 * step : 2 * step + 2], 0.01 / (1 + step)
        found.append(take(state, objective, own, pair, CPU, lr))
        state.step += 1
        state.after_step()
    weights, tensors, values = state.capture()
    assert values["optimizer_steps"] == steps
    return [*found, *weights.values(), *(t for n, t in sorted(tensors.items()) if n != "rng.cpu")]


@pytest.mark.parametrize("optimizer", OPTIMIZER)
@pytest.mark.parametrize("kind", ["images", "text"])
def test_recorded_steps_are_the_steps(kind: str, optimizer: str) -> None:
    said: list[str] = []
    graphs = Graphs(said.append, Again, always=True)
    one = course(queued_step, *started(kind, optimizer), kind)
    other = course(graphs, *started(kind, optimizer), kind)
    assert any(graphs.kept.values())
    assert len(said) == 1
    assert "steps are recorded and repeated (train.cuda_graphs)" in said[0]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


def test_random_numbers_go_on() -> None:
    one = course(queued_step, *started("text", "adamw", dropout=0.3), "text")
    other = course(
        Graphs(print, Again, always=True), *started("text", "adamw", dropout=0.3), "text"
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZER)
def test_weights_that_start_later_are_moved_from_then_on(optimizer: str) -> None:
    def late(name: str) -> int:
        return 7 if "blocks.1" in name else 0

    graphs = Graphs(print, Again, always=True)
    one = course(queued_step, *started("text", optimizer, late), "text")
    other = course(graphs, *started("text", optimizer, late), "text")
    assert len(graphs.kept) == 2
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


def test_a_batch_of_another_form_is_not_taken_for_a_recorded_one() -> None:
    graphs, found = Graphs(print, Again, always=True), []
    options = TrainOptions.model_validate({"steps": 9, "precision": "fp32"})
    for take in (queued_step, graphs):
        state, objective = started("text", "sgd")
        torch.manual_seed(3)
        for rows in (4, 4, 4, 4, 4, 3, 4, 3, 5):
            (batch,) = batches("text", 1, rows)
            result = take(state, objective, options, [batch], CPU, 0.05)
            state.step += 1
        found.append([result, *state.model.parameters()])
    assert len(graphs.kept) == 1
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


def refused(recorder: Callable[[], Any], change: Callable[[Any], None] | None = None) -> str:
    """Why a step is not recorded; unless the model is changed its course is that of other steps."""
    said: list[str] = []
    graphs = Graphs(said.append, recorder, always=True)
    found = []
    for take in (queued_step, graphs):
        state, objective = started("text", "adamw")
        if change is not None:
            change(state.model)
        found.append(course(take, state, objective, "text"))
    assert not any(graphs.kept.values())
    assert change is not None or all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    (line,) = said
    return line


def test_what_asks_the_device_is_not_recorded() -> None:
    line = refused(Looks)
    assert line == (
        "steps are not recorded (train.cuda_graphs): operation not permitted when stream is"
        " capturing"
    )


def test_what_differs_from_step_to_step_is_not_recorded() -> None:
    def growing(model: Any) -> None:
        model.calls = 0

        def scaled(module: Any, inputs: Any, output: Any) -> Any:
            module.calls += 1
            return output * (1 + 0.1 * module.calls)

        model.register_forward_hook(scaled)

    line = refused(Again, growing)
    assert line.endswith("repeated it is another step than that which was recorded")


def test_random_numbers_of_the_cpu_are_not_recorded() -> None:
    class Draws(Again):
        def record(self, what: Callable[[], torch.Tensor]) -> torch.Tensor:
            result = super().record(what)
            torch.rand(1)  # as a part that draws on the CPU, while it is recorded
            return result

    line = refused(Draws)
    assert line.endswith("a part draws random numbers on the CPU, which would be repeated")


def test_where_python_is_fast_enough_nothing_is_recorded() -> None:
    said: list[str] = []
    graphs = Graphs(said.append, lambda: Again(slow=0.2))
    course(graphs, *started("text", "adamw"), "text", steps=BEFORE + 3)
    assert not any(graphs.kept.values())
    assert list(graphs.kept.values()) == [None]
    assert said == []


def test_an_optimizer_of_its_own_kind_is_not_recorded() -> None:
    state, objective = started("text", "adamw")
    kind = OPTIMIZERS["schedule_free_adamw"]
    state.optimizer = kind.model_validate({"type": "schedule_free_adamw"}).build(
        named_weights(state.model)
    )
    graphs = Graphs(print, Again, always=True)
    options = TrainOptions.model_validate({"steps": 9, "precision": "fp32"})
    for batch in batches("text", BEFORE + 3):
        graphs(state, objective, options, [batch], CPU, 0.01)
    assert not graphs.kept
