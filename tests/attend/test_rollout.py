"""What a Vision Transformer gathers its answer from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result

from bigmodel_cli.attend.rollout import rollout
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models.vit import ViT, ViTOptions

BLOCK = {"repeat": 2, "mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_rollout_equals_its_formula(pool: str) -> None:
    torch.manual_seed(0)
    info = DatasetInfo(image_shape=(1, 6, 9), classes=("a", "b"), mean=(0.5,), std=(0.25,))
    options = {
        "dim": 8,
        "patch": 3,
        "pool": pool,
        "registers": 1,
        "blocks": [BLOCK],
        "init_std": 0.5,
    }
    model = ViT(ViTOptions.model_validate(options), info).eval()
    image = torch.randn(1, 1, 6, 9)
    got = rollout(model, image, info)
    inputs: list[torch.Tensor] = []
    for block in model.blocks:
        block.mixer.register_forward_hook(lambda module, args, output: inputs.append(args[0][0]))
    with torch.no_grad():
        model(image)
        total = torch.eye(len(inputs[0]))
        for block, x in zip(model.blocks, inputs, strict=True):
            q, k, _ = block.mixer.qkv(x).view(-1, 6, 4).transpose(0, 1).split(2)
            weights = (q @ k.transpose(-1, -2) / math.sqrt(4)).softmax(-1).mean(0)
            total = (0.5 * weights + 0.5 * torch.eye(len(x))) @ total
    row = total[0, 1:7] if pool == "cls" else total[:6, :6].mean(0)
    coarse = (row - row.min()).view(1, 1, 2, 3)
    want = torch.nn.functional.interpolate(
        coarse, size=(6, 9), mode="bilinear", align_corners=False
    )[0, 0]
    torch.testing.assert_close(got.heat, want / want.max())
    torch.testing.assert_close(got.image, (image[0] * 0.25 + 0.5).clamp(0, 1))


def test_attend_to_an_image_with_a_vit(cnn_spec: Path, cli: Callable[..., Result]) -> None:
    from PIL import Image

    model = (
        "model={type: vit, dim: 16, patch: 2, blocks: [{mixer: {type: attention, num_heads: 2},"
        " ffn: {type: gelu}}]}"
    )
    trained = cli("pretrain", cnn_spec, "--set", model, "--out", "vit")
    assert trained.status == 0, trained.err
    Image.new("L", (8, 8), 90).save("grey.png")
    result = cli("attend", "vit", "grey.png", "--json")
    assert result.status == 0, result.err
    heat = torch.tensor(json.loads(result.out)["heat"])
    assert heat.shape == (8, 8)
    assert Path("attend.png").stat().st_size > 1000
    assert cli("predict", "vit", "grey.png").status == 0
    refused = cli("attend", "vit", "grey.png", "--head", 1)
    assert (refused.status, refused.out) == (2, "")
    assert "--head chooses what is shown of a text" in refused.err
