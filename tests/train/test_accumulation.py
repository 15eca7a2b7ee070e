"""A step of several micro-batches is the step of one batch, where experts are balanced too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.lazy import Module
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.optim import SGDOptions
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import train_step

VOCAB, ROWS, LENGTH = 19, 9, 11
CPU = torch.device("cpu")
EXPERTS = {"type": "moe", "experts": 5, "top_k": 2, "hidden": 16, "balance_weight": 0.7}


def decoder(balance: str = "loss", dropout: float = 0.0) -> Decoder:
    torch.manual_seed(3)
    block = {
        "repeat": 2,
        "mixer": {"type": "attention", "num_heads": 2},
        "ffn": {**EXPERTS, "balance": balance},
        "dropout": dropout,
    }
    options = DecoderOptions.model_validate({"type": "decoder", "dim": 12, "blocks": [block]})
    return Decoder(options, DatasetInfo(vocab_size=VOCAB, context=LENGTH))


def state_of(model: Module) -> TrainState:
    plain = SGDOptions(momentum=0.0, nesterov=False, weight_decay=0.0)
    return TrainState(model, plain.build(named_weights(model)))


def batch_of(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(8)
    names = ("tokens", "rejected") if kind == "dpo" else ("tokens",)
    batch = {name: torch.randint(VOCAB, (ROWS, LENGTH + 1)) for name in names}
    for rows in batch.values():
        rows[2:, 7:] = -1  # what is not counted differs between micro-batches
        rows[6:, 4:] = -1
    return batch


def split(batch: dict[str, Tensor], sizes: list[int]) -> list[dict[str, Tensor]]:
    parts = {name: rows.split(sizes) for name, rows in batch.items()}
    return [{name: rows[i] for name, rows in parts.items()} for i in range(len(sizes))]


def steps(model: Module, kind: str, batches: list[dict[str, Tensor]], count: int) -> list[Any]:
    state, task = state_of(model), TASKS[kind].model_validate({"type": kind}).build()
    if task.needs_reference:
        task.reference = decoder()
    options, found = TrainOptions.model_validate({"steps": 1, "precision": "fp32"}), []
    for _ in range(count):
        found.append(train_step(state, Objective(task), options, batches, CPU, 0.3))
        state.after_step()
    return found


@pytest.mark.parametrize("balance", ["loss", "bias", "none"])
@pytest.mark.parametrize("kind", ["causal_lm", "dpo"])
def test_experts_learn_the_same_in_any_micro_batches(kind: str, balance: str) -> None:
    one, three = decoder(balance), decoder(balance)
    batch = batch_of(kind)
    whole = steps(one, kind, [batch], 4)
    parted = steps(three, kind, split(batch, [1, 5, 3]), 4)
    for a, b in zip(whole, parted, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-6)
        assert a.norm == pytest.approx(b.norm, rel=1e-5)
    for (name, a), b in zip(one.named_parameters(), three.parameters(), strict=True):
        assert float((a - b).detach().abs().max()) <= 1e-6, name


def test_the_balance_gradient_is_that_of_all_tokens_of_the_step() -> None:
    """The router's gradient against Switch's formula (Fedus et al. 2021, eq. 4)."""
    model = decoder()
    seen: list[Tensor] = []
    part = model.get_submodule("blocks.1.ffn")
    part.router.register_forward_hook(lambda m, x, y: seen.append(x[0].detach()))
    batches = split(batch_of("causal_lm"), [4, 2, 3])
    state, task = state_of(model), TASKS["causal_lm"].model_validate({"type": "causal_lm"}).build()

    class Nothing(Objective):
        """A loss of 0, so that only the balance has a gradient."""

        def __call__(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            loss, count = super().__call__(model, batch)
            return 0.0 * loss, count

    weight = part.router.weight.detach().clone()
    options = TrainOptions.model_validate({"steps": 1, "precision": "fp32"})
    train_step(state, Nothing(task), options, batches, CPU, 1.0)
    moved = weight - part.router.weight.detach()
    tokens = torch.cat(seen[-3:])
    inside = torch.cat([(rows["tokens"][:, 1:] != -1).flatten() for rows in batches])
    router = weight.clone().requires_grad_()
    scores = F.softmax(tokens[inside] @ router.T, -1)
    chosen = F.one_hot(scores.topk(2, -1).indices, 5).sum(1).double()
    fraction = (chosen.sum(0) / chosen.sum()).float()
    loss = 0.7 * 5 * (fraction * scores.mean(0)).sum()
    expected = torch.autograd.grad(loss, router)[0]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-7)


def test_counting_ahead_leaves_no_trace() -> None:
    class Normed(Module):
        """A decoder whose logits pass a batch normalisation."""

        def __init__(self, balance: str) -> None:
            super().__init__()
            self.inner, self.norm = decoder(balance, dropout=0.4), nn.BatchNorm1d(VOCAB)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.inner(x).transpose(1, 2)).transpose(1, 2)
            return y

    after = []
    for balance in ("loss", "none"):
        model = Normed(balance)
        torch.manual_seed(5)
        steps(model, "causal_lm", split(batch_of("causal_lm"), [3, 3, 3]), 1)
        after.append(torch.get_rng_state())
        assert int(model.norm.num_batches_tracked) == 3  # type: ignore[arg-type]
        assert model.inner.get_submodule("blocks.0.ffn").foreseen is None
    assert torch.equal(*after)
