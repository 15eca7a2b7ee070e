"""Losses of rows whose positions are divided add up to those of whole rows, and so do gradients."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from teams import copied, together
from torch import Tensor, nn

from bigmodel_cli import draw
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.logits import late
from bigmodel_cli.models.decoder import DecoderOptions
from bigmodel_cli.models.encoder import EncoderOptions
from bigmodel_cli.parts import row_share
from bigmodel_cli.shares import ALONE, Team
from bigmodel_cli.tasks.causal_lm import CausalLMOptions
from bigmodel_cli.tasks.masked_lm import MaskedLMOptions

INFO = DatasetInfo(vocab_size=11, context=16)
MIXER = {"type": "attention", "num_heads": 2, "position": {"type": "rotary"}, "dropout": 0.2}
FFN = {"type": "swiglu", "hidden": 12, "dropout": 0.3}
MODEL = {
    "dim": 8,
    "dropout": 0.1,
    "position": {"type": "learned"},
    "blocks": [
        {"mixer": MIXER, "ffn": FFN, "dropout": 0.2, "drop_path": 0.4},
        {
            "mixer": {"type": "mla", "num_heads": 2, "kv_rank": 3, "rotary_dim": 2},
            "ffn": {"type": "moe", "experts": 3, "hidden": 6, "balance": "none"},
            "dropout": 0.2,
        },
    ],
}


class PerThread(threading.local):
    """A list that each thread has for itself."""

    def __init__(self, first: Any) -> None:
        self.items = [first]
        self.append, self.pop = self.items.append, self.items.pop

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def batch_of(lengths: list[int], width: int) -> dict[str, Tensor]:
    """Rows of so many tokens, with two documents, and an answer that is learnt."""
    torch.manual_seed(6)
    tokens = torch.randint(0, 11, (len(lengths), width))
    places = torch.arange(width).expand_as(tokens)
    ends = torch.tensor(lengths)[:, None]
    return {
        "tokens": tokens.masked_fill(places >= ends, -1),
        "segments": (places > 4).long() + (places >= ends).long(),
        "loss_mask": places > 1,
        "key": torch.arange(len(lengths)) * 977 - 5,
    }


def passed(task: Any, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The sum and the count of the loss, after its backward pass."""
    with draw.drawing(batch["key"]), late(3, task.takes_late):
        outputs = task.forward(model, batch)
        loss, count = task.loss(outputs, batch)
    loss.backward()
    return loss.detach(), count


CASES: dict[str, Any] = {
    "causal": (CausalLMOptions(label_smoothing=0.1), DecoderOptions, {"tie_embeddings": True}),
    "untied": (CausalLMOptions(), DecoderOptions, {"tie_embeddings": False, "logit_scale": 0.5}),
    "masked": (MaskedLMOptions(mask_prob=0.5), EncoderOptions, {"token_types": 2}),
}


@pytest.mark.parametrize("width", [14, 4])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_sums_of_all(monkeypatch: pytest.MonkeyPatch, name: str, size: int, width: int) -> None:
    monkeypatch.setattr(row_share, "_TEAMS", PerThread(ALONE))
    monkeypatch.setattr(draw, "_DRAWING", PerThread(None))
    options, kind, more = CASES[name]
    task = options.build(INFO)
    torch.manual_seed(1)
    model = kind.model_validate({"type": kind.model_fields["type"].default, **MODEL, **more})
    model = model.build(INFO).train()
    batch = batch_of([width, 3, width - 1], width)
    if name == "masked":
        batch = {n: t for n, t in batch.items() if n in ("tokens", "key")}
        batch["types"] = (batch["tokens"] > 4).long()
    whole = copied(model)
    loss, count = passed(task, whole, batch)

    def run(team: Team) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        own = copied(model)
        with row_share.rows_divided(team):
            found = passed(task, own, batch)
        return found, {n: p.grad for n, p in own.named_parameters() if p.grad is not None}

    every = together(size, run)
    assert sum(int(n) for (_, n), _ in every) == int(count) > 0
    assert float(sum(one for (one, _), _ in every)) == pytest.approx(float(loss), rel=1e-6)
    for key, p in whole.named_parameters():
        given = [gradients[key] for _, gradients in every if key in gradients]
        assert (p.grad is None) == (not given), key
        if p.grad is not None:
            apart = torch.stack(given).sum(0) - p.grad
            assert float(apart.abs().max()) <= 1e-5 * float(p.grad.abs().max()), key
