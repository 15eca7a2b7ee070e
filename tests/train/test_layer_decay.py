"""Layer-wise decay of the learning rate, against rates and updates worked out anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.layer_decay import with_layer_decay
from bigmodel_cli.models import MODELS, build
from bigmodel_cli.optim import OPTIMIZERS
from bigmodel_cli.roles import MATRIX, Role, Weight, named_weights

MIXER = {"type": "attention", "num_heads": 2}
BLOCK = {"mixer": MIXER, "ffn": {"type": "gelu", "hidden": 6}}
TEXT = DatasetInfo(vocab_size=11, context=5)
IMAGES = DatasetInfo(image_shape=(1, 8, 8), classes=("a", "b", "c"))
CASES: dict[str, tuple[dict[str, Any], DatasetInfo, dict[str, int]]] = {
    # of names' beginnings, how often the rate is multiplied by the decay
    "encoder": (
        {"type": "encoder", "dim": 4, "blocks": [{**BLOCK, "repeat": 2}, BLOCK], "pooler": True,
         "position": {"type": "learned"}, "embedding_norm": {"type": "layernorm"}},
        DatasetInfo(vocab_size=11, context=5, classes=("a", "b")),
        {"embedding": 4, "mask": 4, "position": 4, "embedding_norm": 4, "blocks.0": 3,
         "blocks.1": 2, "blocks.2": 1, "norm": 0, "pooler": 0, "head": 0},
    ),
    "decoder, tied": (
        {"type": "decoder", "dim": 4, "blocks": [BLOCK] * 2}, TEXT,
        {"embedding": 3, "blocks.0": 2, "blocks.1": 1, "norm": 0},
    ),
    "seq2seq": (
        {"type": "seq2seq", "dim": 4, "encoder": [BLOCK] * 2, "norm": {"type": "layernorm"},
         "decoder": [{**BLOCK, "cross": {"num_heads": 2}}], "share_embeddings": False},
        DatasetInfo(vocab_size=11, source_vocab_size=9, context=5),
        {"source_embedding": 4, "target_embedding": 4, "encoder.0": 3, "encoder.1": 2,
         "encoder_norm": 2, "decoder.0": 1, "decoder_norm": 0, "head": 0},
    ),
    "vit": (
        {"type": "vit", "dim": 4, "patch": 4, "blocks": [BLOCK]}, IMAGES,
        {"": 2, "blocks.0": 1, "norm": 0, "head": 0},
    ),
    "cnn": (
        {"type": "cnn", "layers": [
            {"type": "conv", "channels": 3, "norm": "batch"}, "pool",
            {"type": "conv", "channels": 2},
            "flatten", {"type": "dense", "units": "classes"},
        ]}, IMAGES,
        {"layers.0": 2, "layers.2": 1, "layers.4": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_rates_by_depth(case: tuple[dict[str, Any], DatasetInfo, dict[str, int]]) -> None:
    values, info, powers = case
    model = build(MODELS[values["type"]].model_validate(values), info)
    found = with_layer_decay(model, named_weights(model), 0.7)
    assert [w.name for w in found] == [name for name, _ in model.named_parameters()]
    for weight in found:
        longest = max((p for p in powers if f"{weight.name}.".startswith(f"{p}." if p else "")),
                      key=len)  # fmt: skip
        assert weight.rate == pytest.approx(0.7 ** powers[longest]), weight.name
    assert all(w.rate == 1.0 for w in with_layer_decay(model, named_weights(model), None))


def test_a_network_without_blocks_is_refused() -> None:
    options = MODELS["torchvision"].model_validate({"type": "torchvision", "name": "resnet18"})
    with torch.device("meta"):
        model = build(options, DatasetInfo(image_shape=(3, 64, 64), classes=("a", "b")))
    with pytest.raises(SpecError, match=r"train.layer_decay: this network is not made of blocks"):
        with_layer_decay(model, named_weights(model), 0.9)


GAIN = Role()
TORCH = {
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
}


@pytest.mark.parametrize("kind", TORCH)
def test_updates_equal_those_of_torchs_groups(kind: str) -> None:
    torch.manual_seed(0)
    shapes = [(5, 3), (4,), (2, 7), (3,)]
    kinds = [(MATRIX, 0.3), (GAIN, 0.3), (MATRIX, 1.0), (GAIN, 0.0625)]
    start = [torch.randn(shape) for shape in shapes]
    ours = [nn.Parameter(t.clone()) for t in start]
    theirs = [nn.Parameter(t.clone()) for t in start]
    options = {"type": kind, "lr": 0.01, "weight_decay": 0.2}
    options |= {"momentum": 0.9, "nesterov": False} if kind == "sgd" else {}
    optimizer = (
        OPTIMIZERS[kind]
        .model_validate(options)
        .build(
            Weight(str(i), p, role, rate)
            for i, (p, (role, rate)) in enumerate(zip(ours, kinds, strict=True))
        )
    )
    reference = TORCH[kind](
        [
            {"params": [p], "lr": 0.01 * rate, "weight_decay": 0.2 if role.decayed else 0.0}
            for p, (role, rate) in zip(theirs, kinds, strict=True)
        ]
    )
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = 3 * q.grad
        optimizer.step(0.01, 3.0)
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["muon", "schedule_free_adamw"])
def test_a_rate_is_a_smaller_learning_rate(kind: str) -> None:
    torch.manual_seed(1)
    start, gradients = torch.randn(4, 6), torch.randn(4, 4, 6)

    def moved(lr: float, rate: float) -> torch.Tensor:
        p = nn.Parameter(start.clone())
        options = OPTIMIZERS[kind].model_validate({"type": kind, "lr": 0.05, "weight_decay": 0.1})
        optimizer = options.build([Weight("w", p, MATRIX, rate)])
        for gradient in gradients:
            p.grad = gradient.clone()
            optimizer.step(lr, 1.0)
        return p.detach()

    torch.testing.assert_close(moved(0.05, 0.25), moved(0.0125, 1.0))


def test_the_dry_run_shows_the_rates_and_a_resume_is_exact(cli: Any, decoder_spec: Path) -> None:
    decay = ["--set", "train.layer_decay=0.5", "--set", "train.validate_every=null"]
    shown = cli("pretrain", decoder_spec, "--dry-run", *decay)
    assert "learning rates by depth are multiplied by 0.125, 0.25, 0.5, 1" in shown.out, shown.err
    found = json.loads(cli("pretrain", decoder_spec, "--dry-run", "--json", *decay).out)["weights"]
    assert {w["name"].partition(".")[0]: w["rate"] for w in found}["embedding"] == 0.125

    def trained(out: str, steps: int, *more: str) -> bytes:
        steps_of = ("--set", f"train.steps={steps}")
        result = cli("pretrain", decoder_spec, "--out", out, *steps_of, *more)
        assert result.status == 0, result.err
        assert "by depth" in result.err
        return (Path(result.out.strip()) / "model.safetensors").read_bytes()

    whole = trained("whole", 6, *decay)
    trained("run", 3, *decay)
    assert trained("run", 6, *decay, "--resume") == whole
    assert trained("other", 6, "--set", "train.layer_decay=0.6") != whole
