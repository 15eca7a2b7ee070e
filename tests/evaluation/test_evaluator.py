"""Losses and metrics travel as sums and counts; intervals hold what they say."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from conftest import loss_of, scores_of
from torch import nn

from bigmodel_cli.evaluation.evaluator import estimates, means, values_of
from bigmodel_cli.metrics.intervals import exact_interval
from bigmodel_cli.optim import AdamWOptions
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.tasks import CausalLMOptions, ClassificationOptions
from bigmodel_cli.tasks.base import Task
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import train_step


class Constant(nn.Module):
    """Gives the logits that it was made with."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same logits whatever comes in."""
        return self.logits


class Bigrams(nn.Module):
    """What follows a token, from the token alone; -1 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, 7)"""
        logits: torch.Tensor = self.head(self.embedding(tokens.clamp(min=0)))
        return logits


def test_next_token_prediction_by_hand() -> None:
    tokens = torch.tensor([[2, 0, 1, -1], [1, 2, 2, 0]])
    logits = torch.randn(2, 3, 3)
    task = CausalLMOptions().build()
    total, count = loss_of(task, Constant(logits), {"tokens": tokens})
    logs = logits.log_softmax(-1)
    # item, position, the token that follows
    targets = [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 2),
        (1, 1, 2),
        (1, 2, 0),
    ]
    expected = -sum(logs[b, t, v] for b, t, v in targets)
    torch.testing.assert_close(total, expected)
    assert int(count) == 5
    scores = scores_of(task, Constant(logits), {"tokens": tokens})
    assert scores["loss"][1].tolist() == [2, 3]
    torch.testing.assert_close(scores["loss"][0].sum().float(), expected)
    right = sum(int(logits[b, t].argmax()) == v for b, t, v in targets)
    assert int(scores["accuracy"][0].sum()) == right
    metrics = values_of(task, means(task, scores))
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["bits_per_token"] == pytest.approx(metrics["loss"] / math.log(2))


def test_label_smoothing_by_hand() -> None:
    logits, labels = torch.randn(4, 5), torch.tensor([0, 3, 2, 4])
    task = ClassificationOptions(label_smoothing=0.2).build()
    total, count = loss_of(task, Constant(logits), {"image": torch.zeros(4), "label": labels})
    soft = torch.full((4, 5), 0.2 / 5)
    soft[torch.arange(4), labels] += 0.8
    torch.testing.assert_close(total, -(soft * logits.log_softmax(-1)).sum())
    assert int(count) == 4


def test_accuracy_and_top_five() -> None:
    logits, labels = torch.randn(50, 30), torch.randint(30, (50,))
    scores = scores_of(
        ClassificationOptions().build(),
        Constant(logits),
        {"image": torch.zeros(50), "label": labels},
    )
    assert int(scores["accuracy"][0].sum()) == int((logits.argmax(1) == labels).sum())
    order = logits.argsort(1, descending=True)[:, :5]
    assert int(scores["top5"][0].sum()) == sum(
        int(label) in row for label, row in zip(labels, order.tolist(), strict=True)
    )


def test_accumulated_micro_batches_equal_one_batch_whatever_their_padding() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (6, 5))
    tokens[1, 2:] = -1
    tokens[4, 1:] = -1  # nothing but padding follows
    task: Any = CausalLMOptions().build()
    weights = []
    for size in (6, 2):
        torch.manual_seed(1)
        model = Bigrams()
        state = TrainState(model, AdamWOptions().build(named_weights(model)))
        options = TrainOptions(steps=1, precision="fp32", max_grad_norm=0.05)
        batches = [{"tokens": t} for t in tokens.split(size)]
        result = train_step(state, Objective(task), options, batches, torch.device("cpu"), 0.01)
        weights.append((result.norm, torch.cat([p.flatten() for p in model.parameters()])))
        assert result.count == 6 * 4 - 3 - 4 + 0 == 17
    assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-5)
    torch.testing.assert_close(weights[0][1], weights[1][1], atol=1e-6, rtol=0)


def test_clipping_shortens_the_gradient() -> None:
    model = nn.Linear(2, 1, bias=False)

    class Total(Task):
        def forward(self, model: Any, batch: Any, training: bool = True) -> torch.Tensor:
            return model(batch["x"])

        def loss(self, outputs: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return outputs.sum(), torch.tensor(1)

    from bigmodel_cli.optim import SGDOptions

    state = TrainState(model, SGDOptions(momentum=0.0, nesterov=False).build(named_weights(model)))
    before = model.weight.detach().clone()
    options = TrainOptions(steps=1, precision="fp32", max_grad_norm=1.0)
    result = train_step(
        state,
        Objective(Total()),
        options,
        [{"x": torch.tensor([[3.0, 4.0]])}],
        torch.device("cpu"),
        0.5,
    )
    assert result.norm == pytest.approx(5.0)
    torch.testing.assert_close(before - model.weight, 0.5 * torch.tensor([[0.6, 0.8]]))


def test_the_moving_average_follows_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    state = TrainState(model, AdamWOptions().build(named_weights(model)), ema_decay=0.5)
    expected = model.weight.item()
    for step in range(4):
        state.step = step
        with torch.no_grad():
            model.weight.add_(1.0)
        state.update_ema()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.item()
    raw = model.weight.item()
    with state.averaged():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == raw


def test_exact_intervals_are_those_of_scipy() -> None:
    from scipy.stats import binomtest

    for successes, trials in ((0, 10), (10, 10), (3, 10), (98, 100), (9921, 10_000)):
        interval = binomtest(successes, trials).proportion_ci(0.95, "exact")
        assert exact_interval(successes, trials) == pytest.approx(
            (interval.low, interval.high), abs=1e-9
        )


def test_intervals_of_means_and_what_derives_from_them() -> None:
    task: Any = CausalLMOptions().build()
    generator = torch.Generator().manual_seed(random.Random(0).randrange(100))
    covered = 0
    for _ in range(40):
        counts = torch.randint(1, 30, (200,), generator=generator)
        sums = counts * 2.0 + torch.randn(200, generator=generator) * counts.sqrt()
        scores = {
            "loss": (sums.double(), counts),
            "accuracy": ((counts > 3).double(), torch.ones(200, dtype=torch.int64)),
        }
        found = estimates(task, means(task, scores))
        assert found["loss"].low < found["loss"].value < found["loss"].high
        assert found["perplexity"].low == pytest.approx(math.exp(found["loss"].low))
        assert found["accuracy"].method == "exact"
        assert found["loss"].count == int(counts.sum())
        covered += found["loss"].low <= 2.0 <= found["loss"].high
    assert covered >= 33  # of 40, at 95 %
