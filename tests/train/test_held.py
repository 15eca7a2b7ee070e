"""Frozen weights that are held in the products' precision change nothing that is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DECODER, Result, digests
from safetensors.torch import load_file

from bigmodel_cli.adapters import ADAPTERS, attach
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.based import frozen_weights
from bigmodel_cli.models import MODELS, build
from bigmodel_cli.train.held import hold_in_precision

BLOCK = {"mixer": {"type": "attention", "num_heads": 2}, "norm": "rmsnorm"}
TEXT = DatasetInfo(vocab_size=40, context=12)
IMAGES = DatasetInfo(image_shape=(3, 32, 32), classes=("a", "b", "c"))
CASES: dict[str, tuple[dict[str, Any], DatasetInfo]] = {
    "decoder": ({"type": "decoder", "dim": 32, "tie_embeddings": False, "blocks": [
        {**BLOCK, "ffn": "swiglu"}, {**BLOCK, "ffn": {"type": "moe", "experts": 4, "top_k": 2}},
    ]}, TEXT),
    "tied": ({"type": "decoder", "dim": 32, "blocks": [{**BLOCK, "ffn": "gelu"}]}, TEXT),
    "latent": ({"type": "decoder", "dim": 32, "blocks": [
        {"mixer": {"type": "mla", "num_heads": 2, "kv_rank": 8}, "ffn": "relu2"},
        {"mixer": {"type": "mamba2"}, "ffn": "relu"},
        {"mixer": {"type": "gated_deltanet", "num_heads": 2}},
    ]}, TEXT),
    "cnn": ({"type": "torchvision", "name": "resnet18"}, IMAGES),
    "vit": ({"type": "vit", "dim": 32, "patch": 8, "blocks": [{**BLOCK, "ffn": "gelu"}]}, IMAGES),
}  # fmt: skip


def example(info: DatasetInfo) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if info.image_shape:
        return torch.randn(2, *info.image_shape, generator=generator)
    return torch.randint(40, (3, 12), generator=generator)


def model_of(values: dict[str, Any], info: DatasetInfo, kind: str) -> Any:
    torch.manual_seed(2)
    model = build(MODELS[values["type"]].model_validate(values), info)
    options = {"rank": 2, "targets": ["*"]}
    attach(model, ADAPTERS[kind].model_validate(options).low_rank(), fill=True)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape)
    return model.train()


def passed(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().square().sum().backward()
    return y, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["lora", "pissa"])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_outputs_and_gradients_are_the_same_to_the_bit(
    case: tuple[dict[str, Any], DatasetInfo], kind: str
) -> None:
    plain, held = model_of(*case, kind), model_of(*case, kind)
    hold_in_precision(held, frozen_weights(held), "bf16")
    changed = [n for n, p in held.named_parameters() if p.dtype == torch.bfloat16]
    assert changed
    assert not any("norm" in n or "router" in n or "embedding" in n for n in changed)
    assert not any(p.dtype == torch.bfloat16 for p in held.parameters() if p.requires_grad)
    x = example(case[1])
    (y, gradients), (expected, others) = passed(held, x), passed(plain, x)
    assert torch.equal(y, expected)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name


def test_what_checkpoints_hold_and_fp32_stay() -> None:
    values, info = CASES["decoder"]
    model = model_of(values, info, "lora")
    hold_in_precision(model, frozenset(), "bf16")
    hold_in_precision(model, frozen_weights(model), "fp32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_run_in_bf16_and_its_resume(cli: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a rose is a rose is a rose. " * 40)
    base = tmp_path / "base.yaml"
    base.write_text(
        DECODER.replace("text.txt", str(tmp_path / "text.txt")).replace("steps: 12", "steps: 1")
    )
    found = cli("pretrain", base, "--out", "base")
    assert found.status == 0, found.err
    saving = ["--set", "train.validate_every=2", "--set", "train.rewind={window: 2}"]
    adapter = "adapter={type: lora, rank: 2, targets: ['*.qkv', '*.ffn']}"
    words = ["finetune", "--from", "base", "--set", adapter, "--set", "train.precision=bf16"]
    words += saving
    whole = cli(*words, "--set", "train.steps=4", "--out", "whole")
    assert whole.status == 0, whole.err
    half = cli(*words, "--set", "train.steps=2", "--out", "half")
    assert half.status == 0, half.err
    again = cli("finetune", "--resume", "--out", "half", "--set", "train.steps=4")
    assert again.status == 0, again.err
    assert digests(Path(again.out.strip())) == digests(Path(whole.out.strip()))
    stored = load_file(Path(whole.out.strip()) / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())
