"""Frozen parts do not change: weights, normalisation statistics, biases and loads of experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor, nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.frozen import freeze, still_modules
from bigmodel_cli.models import ModelOptions, build
from bigmodel_cli.modes import evaluating, training_mode
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.start_options import InitOptions
from bigmodel_cli.tasks import CausalLMOptions, ClassificationOptions
from bigmodel_cli.train.autotune import ComputeMode, _one_pass, measure
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import train_step

IMAGES = DatasetInfo(image_shape=(3, 32, 32), classes=tuple("abc"))
CNN = {
    "type": "cnn",
    "layers": [
        {"type": "conv", "channels": 4, "norm": "batch"},
        {
            "type": "residual",
            "layers": [{"type": "conv", "channels": 6, "padding": 1, "norm": "batch"}],
        },
        {"type": "adaptive_pool"},
        {"type": "flatten"},
        {"type": "dropout"},
        {"type": "dense", "units": "classes"},
    ],
}
VIT = {
    "type": "vit", "dim": 16, "patch": 16,
    "blocks": [{"repeat": 2, "mixer": {"type": "attention", "num_heads": 2, "dropout": 0.5},
     "ffn": {"type": "gelu"}}],
}  # fmt: skip
MOE = {
    "type": "decoder", "dim": 16, "tie_embeddings": False,
    "blocks": [{
        "repeat": 2, "mixer": {"type": "attention", "num_heads": 2},
        "ffn": {"type": "moe", "experts": 4, "balance": "bias", "balance_weight": 0.5},
    }],
}  # fmt: skip
TOKENS = DatasetInfo(vocab_size=11, context=8)
CASES: dict[str, tuple[dict[str, Any], InitOptions, str]] = {
    # the model, what is frozen, and what alone may move
    "cnn head": (CNN, InitOptions(train="head"), "layers.5."),
    "cnn pattern": (CNN, InitOptions(freeze=["layers.1"]), "layers.0.|layers.5."),
    "resnet18": ({"type": "torchvision", "name": "resnet18"}, InitOptions(train="head"), "fc."),
    "mobilenet": ({"type": "torchvision", "name": "mobilenet_v2"}, InitOptions(train="head"),
     "classifier.1."),
    "resnet18 but its end": ({"type": "torchvision", "name": "resnet18"},
                             InitOptions(freeze=["conv1", "bn1", "layer[123].*"]), "layer4.|fc."),
    "vit": (VIT, InitOptions(train="head"), "head."),
    "experts": (MOE, InitOptions(train="head"), "head."),
    "one block of experts": (MOE, InitOptions(freeze=["blocks.0.ffn"]),
                             "embedding.|blocks.0.mixer|blocks.0.ffn_norm.|blocks.1.|norm.|head."),
}  # fmt: skip


def model_of(values: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return build(
        TypeAdapter(ModelOptions).validate_python(values), TOKENS if values is MOE else IMAGES
    )


def batch_of(values: dict[str, Any], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if values is MOE:
        return {"tokens": torch.randint(11, (3, 9), generator=generator)}
    return {
        "image": torch.randn(4, 3, 32, 32, generator=generator),
        "label": torch.tensor([0, 1, 2, 1]),
    }


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("name", CASES)
def test_frozen_parts_are_bit_identical_after_some_steps(name: str) -> None:
    values, init, moving = CASES[name]
    model = model_of(values)
    freeze(model, init)
    options = TrainOptions(steps=9, precision="fp32")
    task: Any = (CausalLMOptions() if values is MOE else ClassificationOptions()).build()
    optimizer = options.optimizer.model_copy(update={"weight_decay": 0.1}).build(
        named_weights(model)
    )
    state = TrainState(model, optimizer, ema_decay=0.5, still=still_modules(model, init))
    training_mode(model, state.still)
    before = everything(model)
    for step in range(4):
        result = train_step(state, Objective(task), options,
         [batch_of(values, 2 * step), batch_of(values, 2 * step + 1)],
                            torch.device("cpu"), 0.01)  # fmt: skip
        assert result.finite
        state.after_step()
        with evaluating(model):  # a validation in between
            assert not any(m.training for m in model.modules())
    after = everything(model)
    prefixes = tuple(moving.split("|"))
    frozen = {n for n in after if not n.startswith(prefixes)}
    assert [n for n in frozen if not torch.equal(before[n], after[n])] == []
    assert all(torch.equal(state.ema[n], before[n]) for n in frozen & state.ema.keys())
    constant = {n for n, t in after.items() if torch.equal(before[n], t)} - frozen
    assert all(n.endswith(("load", "k_norm.weight")) for n in constant), constant
    if name == "one block of experts":
        assert set(state.statistics()) == {"experts.load_max", "experts.idle"}
    if name == "experts":
        assert state.statistics() == {}


class Odd(nn.Module):
    """Statistics without weights, beside and within what is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Dropout(0.5))
        self.plain = nn.BatchNorm1d(4, affine=False)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.header = nn.Linear(4, 2)

    def output_layers(self) -> tuple[str, ...]:
        return ("head",)


def test_modules_without_weights_of_their_own() -> None:
    def still(**init: Any) -> set[str]:
        model = Odd()
        freeze(model, InitOptions(**init))
        return set(still_modules(model, InitOptions(**init)))

    stem = {"stem", "stem.0", "stem.1", "stem.2"}
    assert still() == set()
    assert still(freeze=["stem"]) == stem
    assert still(freeze=["stem", "plain"]) == {*stem, "plain"}
    assert still(freeze=["stem.0"]) == stem  # all weights of the stem
    # the dropout before the head is the head's
    assert still(train="head") == {
        *stem,
        "plain",
        "header",
    }
    with pytest.raises(SpecError, match="'nothing' matches no weight"):
        freeze(Odd(), InitOptions(freeze=["nothing"]))
    with pytest.raises(SpecError, match="every weight is frozen"):
        freeze(Odd(), InitOptions(freeze=["*"]))


def test_timing_before_a_run_changes_no_weight() -> None:
    model = model_of(CNN)
    before, random = everything(model), torch.get_rng_state()
    task: Any = ClassificationOptions().build()
    device, batch = torch.device("cpu"), batch_of(CNN, 0)
    candidates = [ComputeMode(), ComputeMode(memory_format="channels_last"), ComputeMode("bf16")]
    measure(lambda c: _one_pass(model, task, batch, c, device, backward=True), model, candidates)
    assert all(torch.equal(before[n], t) for n, t in everything(model).items())
    assert int(model.get_buffer("layers.0.norm.num_batches_tracked")) == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_a_finetuning_of_the_head_keeps_every_other_tensor(
    cnn_spec: Path, cli: Callable[..., Result]
) -> None:
    first = Path(cli("pretrain", cnn_spec, "--out", "first", "--set", "train.ema=null").out.strip())
    changes = ["init.train=head", "train.ema=null", "train.steps=8"]
    second = cli(
        "finetune",
        "--from",
        first,
        cnn_spec,
        "--out",
        "second",
        *(w for c in changes for w in ("--set", c)),
    )
    assert second.status == 0, second.err
    assert "of them frozen" in second.err
    assert "tensors frozen" in second.err
    before, after = (
        load_file(path / "model.safetensors") for path in (first, Path(second.out.strip()))
    )
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"layers.4.dense.weight", "layers.4.dense.bias"}
    assert {"layers.0.norm.running_mean", "layers.0.norm.num_batches_tracked"} < after.keys()
