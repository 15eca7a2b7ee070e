"""Weights that are drawn when they are needed are those that would be drawn at once."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.assemble import Later, assemble, later
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models import Model
from bigmodel_cli.spec import from_dict

CPU = torch.device("cpu")
TEXT = DatasetInfo(vocab_size=37, context=12)
IMAGES = DatasetInfo(image_shape=(3, 16, 16), classes=("a", "b", "c"))
EXPERTS = {"type": "moe", "experts": 3, "hidden": 11, "shared": 5}
MODELS: dict[str, tuple[DatasetInfo, dict[str, Any]]] = {
    "experts": (
        TEXT,
        {
            "type": "decoder",
            "dim": 20,
            "position": {"type": "learned"},
            "tie_embeddings": False,
            "blocks": [{"mixer": {"type": "attention", "num_heads": 2}, "ffn": EXPERTS}],
        },
    ),
    "state space": (
        TEXT,
        {
            "type": "decoder",
            "dim": 24,
            "blocks": [
                {
                    "mixer": {"type": "mamba2", "head_dim": 12},
                    "ffn": {"type": "swiglu", "hidden": 30},
                },
                {"mixer": {"type": "differential", "num_heads": 2}},
            ],
        },
    ),
    "patches": (
        IMAGES,
        {
            "type": "vit",
            "dim": 16,
            "patch": 4,
            "blocks": [{"mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}],
        },
    ),
    "convolutions": (IMAGES, {"type": "torchvision", "name": "resnet18"}),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all weights wait."""
    monkeypatch.setattr(later, "LARGE", 64)


def built(name: str, waiting: Later | None, seed: int = 3) -> Model:
    """A model that is drawn at once, or later."""
    info, model = MODELS[name]
    task = "causal_lm" if info is TEXT else "classification"
    data = {"type": "text", "files": ["x"], "context": 12} if info is TEXT else {"type": "digits"}
    spec = from_dict(
        {
            "model": model,
            "data": data,
            "task": {"type": task},
            "train": {"steps": 1, "seed": seed},
        }
    )
    return assemble(spec, info, CPU, later=waiting)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits(name: str) -> None:
    whole = built(name, None)
    random = torch.get_rng_state()
    waiting = Later(1 << 40)
    model = built(name, waiting)
    assert torch.equal(torch.get_rng_state(), random)
    weights = dict(model.named_parameters())
    assert waiting.due
    torch.manual_seed(8)
    now = torch.get_rng_state()
    for weight in reversed(weights.values()):  # in any order
        waiting.fill([weight])
    assert torch.equal(torch.get_rng_state(), now)
    for key, weight in whole.named_parameters():
        assert torch.equal(weight, weights[key]), key
    for key, buffer in whole.named_buffers():
        assert torch.equal(buffer, model.get_buffer(key)), key


def test_nothing_is_written_before() -> None:
    waiting = Later(1 << 40)
    with waiting.noting():
        layer = nn.Linear(512, 2048)
        nn.init.normal_(layer.weight)
    before = layer.weight.detach().clone()
    waiting.fill([layer.weight])
    assert int((layer.weight == before).count_nonzero()) < 100
    assert float(layer.weight.detach().std()) == pytest.approx(1.0, abs=0.01)


def test_what_reads_numbers_gets_them() -> None:
    def made() -> dict[str, torch.Tensor]:
        torch.manual_seed(4)
        found = {"plain": torch.empty(30, 5).normal_()}
        found["sum"] = found["plain"].sum(0)
        found["turned"] = nn.init.orthogonal_(torch.empty(24, 24))
        found["rows"] = torch.empty(9, 8).uniform_()
        found["rows"][2:4].zero_()
        found["rows"].t()[1].mul_(3.0).add_(found["sum"].new_ones(9))
        found["copied"] = torch.empty(30, 5).copy_(found["plain"])
        found["cut"] = nn.init.trunc_normal_(torch.empty(40, 6), std=2.0)
        found["after"] = torch.rand(3)
        return found

    whole, waiting = made(), Later(1 << 40)
    with waiting.noting():
        parts = made()
    for name, tensor in whole.items():
        waiting.fill([parts[name]])
        assert torch.equal(tensor, parts[name]), name


def test_memory_of_another_tensor_is_not_taken_for_it() -> None:
    waiting = Later(1 << 40)
    with waiting.noting():
        for _ in range(50):  # each may lie where the one before it lay
            torch.empty(100).normal_()
        gc.collect()
        own = torch.arange(100.0)
    waiting.fill([own])
    assert torch.equal(own, torch.arange(100.0))


def test_what_gets_other_numbers_is_not_drawn() -> None:
    waiting = Later(1 << 40)
    with waiting.noting():
        one, other = (torch.empty(100).normal_() for _ in range(2))
    waiting.forget([one])
    one.fill_(7.0)
    waiting.fill([one, other])
    assert bool((one == 7.0).all())
    assert float(other.std()) > 0.5
