"""Blocks whose activations are computed again: the same losses and gradients, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import MODELS, Model
from bigmodel_cli.models.describe import training_flops
from bigmodel_cli.models.footprint import step_peaks

ATTENTION = {"type": "attention", "num_heads": 2, "dropout": 0.2}
TEXT, IMAGES = (
    DatasetInfo(vocab_size=17, context=11),
    DatasetInfo(image_shape=(3, 8, 8), classes=("a", "b", "c")),
)
DROPS = {"dropout": 0.1, "drop_path": 0.3}


def decoder(mixer: Any = "attention", ffn: Any = "gelu") -> dict[str, Any]:
    mixer = ATTENTION if mixer == "attention" else mixer
    return {
        "type": "decoder",
        "dim": 16,
        "blocks": [{"repeat": 3, "mixer": mixer, "ffn": ffn, **DROPS}],
    }


SPECS: dict[str, dict[str, Any]] = {
    "attention": decoder(),
    "mamba2": decoder({"type": "mamba2", "head_dim": 8}),
    "deltanet": decoder({"type": "gated_deltanet", "num_heads": 2}),
    "retention": decoder({"type": "retention", "num_heads": 2}),
    "experts": decoder(ffn={"type": "moe", "experts": 4, "top_k": 2}),
    "biased experts": decoder(ffn={"type": "moe", "experts": 4, "top_k": 1, "balance": "bias"}),
    "encoder": {**decoder(), "type": "encoder", "dropout": 0.1},
    "seq2seq": {
        "type": "seq2seq",
        "dim": 16,
        "encoder": [{"repeat": 2, "mixer": ATTENTION, "ffn": "relu", **DROPS}],
        "decoder": [{"mixer": ATTENTION, "cross": {"num_heads": 4}, "ffn": "relu", **DROPS}],
    },
    "vit": {**decoder(), "type": "vit", "patch": 4},
    "cnn": {
        "type": "cnn",
        "layers": [
            {"type": "conv", "channels": 4, "norm": "batch"},
            {
                "type": "residual",
                "layers": [
                    {"type": "conv", "channels": 4, "norm": "batch", "padding": "same"},
                ],
            },
            {"type": "flatten"},
            {"type": "dropout", "p": 0.4},
            {"type": "dense", "units": "classes"},
        ],
    },
}


def built(name: str) -> tuple[Any, tuple[torch.Tensor, ...]]:
    options = SPECS[name]
    images = options["type"] in ("vit", "cnn")
    torch.manual_seed(2)
    model = MODELS[options["type"]].model_validate(options).build(IMAGES if images else TEXT)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(17, (3, 11))
    tokens[1, 7:] = -1
    inputs = (tokens, tokens[:, :6]) if name == "seq2seq" else (tokens,)
    return model.train(), (torch.randn(4, 3, 8, 8),) if images else inputs


def passed(model: Any, inputs: tuple[torch.Tensor, ...], precision: str) -> dict[str, Any]:
    """Everything that two micro-batches leave behind."""
    model.zero_grad()
    torch.manual_seed(6)
    outputs = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = model(*inputs)
        more = [m.auxiliary for m in model.modules() if getattr(m, "auxiliary", None) is not None]
        (y.float().square().sum() + sum(more)).backward()
        outputs.append(y.detach())
    return {
        "outputs": torch.cat(outputs),
        "drawn": torch.rand(3),
        **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        **{n: b.clone() for n, b in model.named_buffers()},
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_everything_is_the_same_to_the_bit(name: str, precision: str) -> None:
    (plain, inputs), (model, _) = built(name), built(name)
    model.recompute()
    calls: list[int] = []
    last = next(m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d))
    last.register_forward_hook(lambda m, i, o: calls.append(1))
    want, got = passed(plain, inputs, precision), passed(model, inputs, precision)
    assert want.keys() == got.keys()
    for key, value in want.items():
        assert torch.equal(value, got[key]), key
    assert calls  # twice for each pass, where the layer is within a block
    model.eval()
    plain.eval()
    with torch.no_grad():
        assert torch.equal(model(*inputs), plain(*inputs))


def test_the_plan_knows_what_is_not_kept_and_counts_work_once() -> None:
    peaks, work = [], []
    for again in (False, True):
        with torch.device("meta"):
            options = {**decoder(), "dim": 64}
            options["blocks"][0]["repeat"] = 12
            model = MODELS["decoder"].model_validate(options).build(TEXT).train()
        if again:
            model.recompute()
        tokens = torch.zeros(64, 11, dtype=torch.int64, device="meta")
        peaks.append(max(step_peaks(model, tokens)))
        work.append(training_flops(model, tokens))
    assert peaks[1] < 0.5 * peaks[0]
    assert work[0] == work[1]


def test_a_network_without_layers_says_so() -> None:
    with pytest.raises(SpecError, match=r"train\.checkpointing: .* set none"):
        Model().recompute()


def test_late_logits_are_planned() -> None:
    options = {"type": "decoder", "dim": 8, "vocab_size": 5000, "blocks": [{"ffn": "gelu"}]}
    with torch.device("meta"):
        model = MODELS["decoder"].model_validate(options).build(TEXT)
    tokens = torch.zeros(300, 11, dtype=torch.int64, device="meta")
    whole, pieces = (max(step_peaks(model, tokens, chunk=c)) for c in ("off", 50))
    assert whole > 2 * 3300 * 5000 * 4
    assert pieces < 300 * 5000 * 4
