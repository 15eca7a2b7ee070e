"""A GPU computes what a CPU computes: losses, gradients, steps of generation, compiled or not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from on_device import DEVICE, needed

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import random_batch
from bigmodel_cli.device import autocast
from bigmodel_cli.models import MODELS
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.train.objective import Objective

pytestmark = needed
Values = dict[str, Any]
CPU = torch.device("cpu")
VOCAB, CONTEXT, DIM = 61, 40, 48
ROTARY = {"type": "rotary"}


def attention(**more: Any) -> Values:
    return {"type": "attention", "num_heads": 3, "position": ROTARY, **more}


MIXERS: dict[str, Values] = {
    "attention": attention(),
    "without positions": attention(position={"type": "none"}),
    "window": attention(window=7),
    "softcap": attention(softcap=5.0),
    "softcap and window": attention(softcap=5.0, window=9),
    "grouped, qk_norm": attention(kv_heads=1, qk_norm=True),
    "sinks": attention(sinks=True),
    "sinks and window": attention(sinks=True, window=7),
    "alibi": attention(position={"type": "alibi"}),
    "t5 bias": attention(position={"type": "t5"}),
    "gated": attention(gate="full"),
    "mla": {"type": "mla", "num_heads": 3, "kv_rank": 16, "rotary_dim": 8, "head_dim": 16},
    "differential": {"type": "differential", "num_heads": 3, "position": ROTARY},
    "mamba2": {"type": "mamba2", "state": 16, "head_dim": 16},
    "gated_deltanet": {"type": "gated_deltanet", "num_heads": 3},
    "retention": {"type": "retention", "num_heads": 3},
    "convolution": {"type": "convolution", "kernel": 5},
}
FFNS: dict[str, Any] = {
    "swiglu": "swiglu",
    "gelu": "gelu",
    "relu2": "relu2",
    "experts": {"type": "moe", "experts": 4, "top_k": 2, "hidden": 32},
    "experts by bias": {
        "type": "moe", "experts": 6, "top_k": 2, "hidden": 24, "shared": 1, "router": "sigmoid",
        "balance": "bias", "balance_weight": 0.001,
    },
}  # fmt: skip


def decoder(mixer: Any, ffn: Any = "swiglu", **more: Any) -> tuple[Any, Any, DatasetInfo]:
    info = DatasetInfo(vocab_size=VOCAB, context=CONTEXT)
    block = {"repeat": 2, "mixer": mixer, "ffn": ffn, "norm": "rmsnorm"}
    values = {"type": "decoder", "dim": DIM, "blocks": [block], **more}
    torch.manual_seed(7)
    return (
        MODELS["decoder"].model_validate(values).build(info),
        TASKS["causal_lm"].model_validate({"type": "causal_lm"}).build(info),
        info,
    )


def other(name: str) -> tuple[Any, Any, DatasetInfo]:
    """Networks of the other types, with their task."""
    block = {"repeat": 2, "mixer": {"type": "attention", "num_heads": 3}, "ffn": "gelu"}
    classes = ("a", "b", "c")
    image = DatasetInfo(image_shape=(3, 32, 32), classes=classes)
    model: Values = {"type": "encoder", "dim": DIM, "blocks": [block]}
    task, info = name, DatasetInfo(vocab_size=VOCAB, context=CONTEXT, classes=classes)
    if name == "masked_lm":
        info = DatasetInfo(vocab_size=VOCAB, context=CONTEXT)
    elif name == "seq2seq":
        crossing = {**block, "cross": {"num_heads": 3}}
        model = {"type": "seq2seq", "dim": DIM, "encoder": [block], "decoder": [crossing]}
        info = DatasetInfo(vocab_size=VOCAB, context=CONTEXT)
    elif name in ("vit", "cnn", "torchvision"):
        model = {
            "vit": {"type": "vit", "dim": DIM, "patch": 8, "blocks": [block]},
            "cnn": {
                "type": "cnn",
                "layers": [
                    {"type": "conv", "channels": 8, "kernel": 3, "norm": "batch"},
                    {"type": "pool"},
                    {"type": "conv", "channels": 12, "kernel": 3, "padding": 1},
                    {"type": "flatten"},
                    {"type": "dense", "units": "classes"},
                ],
            },
            "torchvision": {"type": "torchvision", "name": "resnet18"},
        }[name]
        task, info = "classification", image
    torch.manual_seed(7)
    built = MODELS[model["type"]].model_validate(model).build(info)
    return built, TASKS[task].model_validate({"type": task}).build(info), info


OTHERS = ("classification", "masked_lm", "seq2seq", "vit", "cnn", "torchvision")


def passed(
    given: tuple[Any, Any, DatasetInfo],
    device: torch.device,
    precision: str = "fp32",
    compiled: bool = False,
    chunk: Any = "auto",
) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss of a batch in training, and the gradients, on the CPU."""
    model, task, info = given
    model = copy.deepcopy(model).to(device).train()
    if compiled:
        model.compile()
    torch.manual_seed(3)
    batch = {n: t.to(device) for n, t in random_batch(info, task.reads, 6, CPU).items()}
    for name in ("tokens", "targets"):
        if name in batch and task.name != "masked_lm":
            batch[name][1, 30:] = -1  # a short row
    with autocast(device, precision):
        loss, n = Objective(task, chunk, compiled)(model, batch)
    (loss / n).backward()
    found = {
        name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None
    }
    return float((loss / n).detach()), found


def assert_near(found: Any, expected: Any, loss: float, gradient: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=loss)
    assert found[1].keys() == expected[1].keys()
    whole = sum(float(g.square().sum()) for g in expected[1].values()) ** 0.5
    for name, value in expected[1].items():
        apart = float((found[1][name] - value).norm())
        assert apart <= gradient * whole, f"{name}: {apart / whole:.1e} of the gradient"


@pytest.mark.parametrize("name", MIXERS)
def test_mixers(name: str) -> None:
    given = decoder(MIXERS[name])
    expected = passed(given, CPU)
    assert_near(passed(given, DEVICE), expected, 1e-5, 1e-4)
    assert_near(passed(given, DEVICE, "bf16"), expected, 2e-2, 0.1)


@pytest.mark.parametrize("name", MIXERS)
def test_compiled_mixers(name: str) -> None:
    given = decoder(MIXERS[name])
    expected = passed(given, CPU)
    assert_near(passed(given, DEVICE, compiled=True, chunk=16), expected, 1e-5, 1e-4)
    assert_near(passed(given, DEVICE, "bf16", compiled=True, chunk=16), expected, 2e-2, 0.1)


@pytest.mark.parametrize("name", FFNS)
def test_feed_forward_layers(name: str) -> None:
    given = decoder(attention(), FFNS[name])
    expected = passed(given, CPU)
    assert_near(passed(given, DEVICE), expected, 1e-5, 1e-4)
    assert_near(passed(given, DEVICE, compiled=True), expected, 1e-5, 1e-4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks(name: str, compiled: bool) -> None:
    given = other(name)
    assert_near(passed(given, DEVICE, compiled=compiled), passed(given, CPU), 2e-5, 5e-4)


@pytest.mark.parametrize("name", MIXERS)
def test_steps_of_generation(name: str) -> None:
    """A token at a time, after a prompt, gives what all positions at once give on a CPU."""
    model, _, _ = decoder(MIXERS[name])
    model.eval()
    tokens = torch.randint(VOCAB, (2, 29), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(tokens)
        moved = copy.deepcopy(model).to(DEVICE)
        cache = moved.new_cache(2)
        parts = [moved(tokens[:, :17].to(DEVICE), cache)]
        for at in range(17, 29):
            parts.append(moved(tokens[:, at : at + 1].to(DEVICE), cache))
    found = torch.cat([p.cpu() for p in parts], 1)[:, -expected.shape[1] :]
    tail = min(found.shape[1], 12)
    torch.testing.assert_close(found[:, -tail:], expected[:, -tail:], rtol=1e-4, atol=1e-4)
