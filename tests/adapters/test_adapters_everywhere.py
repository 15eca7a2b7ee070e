"""Whatever a network does with its weights, an adapter on all of them is overlooked by none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigmodel_cli.adapters import ADAPTERS, adapters, attach, merged
from bigmodel_cli.assemble import build_model
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import random_batch
from bigmodel_cli.spec import from_dict
from bigmodel_cli.tasks import build_task

TOKENS = DatasetInfo(vocab_size=23, context=12)
IMAGES = DatasetInfo(
    image_shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, classes=("a", "b", "c")
)
PAIRS = DatasetInfo(vocab_size=23, source_vocab_size=19, context=12)
TEXT = {"type": "text", "files": ["x"], "context": 12}
PICTURES = {"type": "cifar10", "root": "x"}
ATTENTION = {"type": "attention", "num_heads": 4, "kv_heads": 2, "position": {"type": "rotary"}}


def decoder(mixer: dict[str, Any], ffn: Any = "swiglu") -> dict[str, Any]:
    return {"type": "decoder", "dim": 16, "blocks": [{"mixer": mixer, "ffn": ffn}]}


MODELS: dict[str, tuple[dict[str, Any], DatasetInfo, Any, dict[str, Any]]] = {
    name: (decoder(mixer, ffn), TOKENS, {"type": "causal_lm"}, TEXT)
    for name, mixer, ffn in (
        ("attention", ATTENTION, "gelu"),
        ("experts", ATTENTION, {"type": "moe", "experts": 3, "shared": 1, "hidden": 8}),
        ("mla", {"type": "mla", "num_heads": 2, "kv_rank": 8, "rotary_dim": 4}, "swiglu"),
        ("differential", {"type": "differential", "num_heads": 2}, "geglu"),
        ("mamba2", {"type": "mamba2", "state": 8, "head_dim": 8}, None),
        ("gated_deltanet", {"type": "gated_deltanet", "num_heads": 2}, "swiglu"),
        ("convolution", {"type": "convolution"}, "swiglu"),
        ("retention", {"type": "retention", "num_heads": 2}, "swiglu"),
    )
} | {
    "vit": (
        {"type": "vit", "dim": 16, "patch": 8, "blocks": [{"mixer": ATTENTION, "ffn": "gelu"}]},
        IMAGES,
        {"type": "classification"},
        PICTURES,
    ),
    "mobilenet": (
        {"type": "torchvision", "name": "mobilenet_v3_small"},
        IMAGES,
        {"type": "classification"},
        PICTURES,
    ),
    "cnn": (
        {
            "type": "cnn",
            "layers": [
                {"type": "conv", "channels": 6, "padding": "same", "norm": "batch"},
                {"type": "conv", "channels": 8, "kernel": 5, "stride": 3, "groups": 2},
                {"type": "flatten"},
                {"type": "dense", "units": "classes"},
            ],
        },
        IMAGES,
        {"type": "classification"},
        PICTURES,
    ),
    "seq2seq": (
        {
            "type": "seq2seq",
            "dim": 16,
            "encoder": [{"mixer": ATTENTION, "ffn": "gelu"}],
            "decoder": [
                {
                    "mixer": ATTENTION,
                    "cross": {"num_heads": 2},
                    "ffn": "gelu",
                }
            ],
        },
        PAIRS,
        {"type": "seq2seq"},
        {
            "type": "pairs",
            "source": ["a"],
            "target": ["b"],
            "context": 12,
            "tokenizer": {"type": "characters"},
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_on_everything_equals_the_merged_network(name: str) -> None:
    model, info, task_options, data = MODELS[name]
    spec = from_dict({"model": model, "data": data, "task": task_options, "train": {"steps": 1}})
    torch.manual_seed(0)
    adapted, plain = build_model(spec, info), build_model(spec, info)
    plain.load_state_dict(adapted.state_dict())
    options = ADAPTERS["lora"](rank=2, targets=["*"]).low_rank()
    attach(adapted, options, fill=True)
    owners = adapters(adapted)
    assert owners
    with torch.no_grad():
        for adapter in owners.values():
            for own in adapter.factors().values():
                own.lora_B.normal_(std=0.02)
    plain.load_state_dict(merged(adapted))
    task = build_task(spec.task, info)
    batch = random_batch(info, task.reads, 2, torch.device("cpu"))
    adapted.eval(), plain.eval()
    ours, theirs = (task.forward(m, batch, training=False) for m in (adapted, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    ours.square().sum().backward()
    for path, p in adapted.named_parameters():
        assert (p.grad is not None) == (".0.parts." in path), path
    reached = [own.lora_B.grad for a in owners.values() for own in a.factors().values()]
    assert all(bool((gradient != 0).any()) for gradient in reached)
