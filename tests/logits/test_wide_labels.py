"""Labels and numbers in bf16: what a network of few outputs says is not rounded to 8 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.evaluation.evaluator import score_batch
from bigmodel_cli.logits import wide
from bigmodel_cli.models import build
from bigmodel_cli.models.cnn import CNNOptions
from bigmodel_cli.models.encoder import EncoderOptions
from bigmodel_cli.models.heads import mean_of_real
from bigmodel_cli.models.vit import ViTOptions
from bigmodel_cli.tasks.regression import RegressionOptions

NUMBERS: dict[str, Any] = {
    "targets": ("a", "b", "c"),
    "target_mean": (100.0, 0.0, -7.0),
    "target_std": (3.0, 1.0, 0.1),
}
PICTURES = DatasetInfo(image_shape=(1, 9, 9), **NUMBERS)
TEXTS = DatasetInfo(vocab_size=23, context=12, **NUMBERS)
FRAMES = DatasetInfo(frame_width=5, context=12, **NUMBERS)
BLOCKS = [{"repeat": 1, "mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}]
CNN_LAYERS = [
    {"type": "conv", "channels": 6, "kernel": 3},
    {"type": "flatten"},
    {"type": "dense", "units": "classes"},
]


def network(form: str) -> tuple[Any, DatasetInfo, dict[str, torch.Tensor]]:
    """A network of three numbers, what it reads, and a batch of four rows."""
    torch.manual_seed(17)
    if form == "cnn":
        model = build(CNNOptions.model_validate({"layers": CNN_LAYERS}), PICTURES)
        return model, PICTURES, {"image": torch.randn(4, 1, 9, 9)}
    if form == "vit":
        options = {"dim": 20, "patch": 3, "blocks": BLOCKS}
        model = build(ViTOptions.model_validate(options), PICTURES)
        return model, PICTURES, {"image": torch.randn(4, 1, 9, 9)}
    more = {"frontend": {"type": "conv", "stride": 2}} if form == "frames" else {}
    options = {"dim": 20, "blocks": BLOCKS, "pool": "mean", **more}
    info = FRAMES if form == "frames" else TEXTS
    model = build(EncoderOptions.model_validate(options), info)
    if form == "frames":
        lengths = torch.tensor([12, 12, 12, 12])
        return model, info, {"frames": torch.randn(4, 12, 5), "lengths": lengths}
    return model, info, {"tokens": torch.randint(23, (4, 12))}


@pytest.mark.parametrize("form", ["cnn", "vit", "texts", "frames"])
def test_numbers_are_as_exact_as_fp32_where_they_are_scored(form: str) -> None:
    model, info, batch = network(form)
    for head in (m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 3):
        nn.init.normal_(head.weight)
        nn.init.normal_(head.bias)
    model.eval()
    given = model.arguments(batch)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        plain = model(*given)
        with wide():
            found = model(*given)
    assert (plain.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    assert not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, plain.float(), atol=2e-2, rtol=2e-2)
    task = RegressionOptions().build(info)
    rows = {**batch, "numbers": torch.zeros(4, 3)}
    with torch.inference_mode():
        _, answers = score_batch(model, task, rows, torch.device("cpu"), "bf16")
    want = task.named(task.unscaled(found))
    assert answers["prediction"] == [pytest.approx(row, abs=1e-5) for row in want]


def test_a_mean_over_many_positions_is_rounded_once() -> None:
    torch.manual_seed(3)
    x = (torch.randn(3, 700, 40) + 1.5).bfloat16()
    real = torch.arange(700) < torch.tensor([[301], [700], [515]])
    exact = (x.double() * real[..., None]).sum(1) / real.double().sum(1, keepdim=True)
    found = mean_of_real(x, real)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=0, rtol=2**-8 * 1.001)
