"""The encoder on frames of sound: a row gives the same alone and beside longer ones, labelled or
written down.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result
from tones import SPEC, write

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models import build
from bigmodel_cli.models.encoder import EncoderOptions
from bigmodel_cli.models.frontend import ConvFrontendOptions

LENGTHS = [50, 37, 1, 12, 4]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Random frames (5, 50, 6), zero behind each row's length."""
    torch.manual_seed(0)
    lengths = torch.tensor(LENGTHS)
    frames = torch.randn(5, 50, 6) * (torch.arange(50) < lengths[:, None])[..., None]
    return frames, lengths


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_padding_does_not_change_the_convolutions(stride: int, kernel: int) -> None:
    frames, lengths = rows()
    frontend = ConvFrontendOptions(stride=stride, kernel=kernel, channels=10).build(6, 16)
    whole, after = frontend(frames, lengths), frontend.lengths(lengths)
    assert whole.shape == (5, -(-50 // stride), 16)
    assert after.tolist() == [-(-n // stride) for n in LENGTHS]
    for i, n in enumerate(LENGTHS):
        alone = frontend(frames[i : i + 1, :n])
        torch.testing.assert_close(whole[i, : int(after[i])], alone[0], atol=1e-6, rtol=1e-5)
        assert not whole[i, int(after[i]) :].any()


@pytest.mark.parametrize("spelling", ["", "words"])
@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal", "rotary", "window"])
def test_padding_does_not_change_the_encoder(spelling: str, position: str) -> None:
    mixer = {"type": "attention", "num_heads": 2}
    if position == "rotary":
        mixer["position"] = {"type": "rotary"}
    if position == "window":
        mixer["window"] = 3
    options = EncoderOptions.model_validate(
        {
            "dim": 16, "pool": "mean", "init_std": 0.3, "frontend": {"type": "conv", "stride": 2},
            "position": {"type": position if position in ("learned", "sinusoidal") else "none"},
            "blocks": [{"repeat": 2, "mixer": mixer, "ffn": {"type": "gelu"}}],
        }
    )  # fmt: skip
    info = DatasetInfo(classes=("a", "b", "c"), frame_width=6, context=50, spelling=spelling)
    model = build(options, info).eval()
    frames, lengths = rows()
    whole = model(frames, lengths)
    assert whole.shape == ((5, 25, 4) if spelling else (5, 3))
    for i, n in enumerate(LENGTHS):
        alone = model(frames[i : i + 1, :n])
        own = whole[i, : -(-n // 2)] if spelling else whole[i]
        torch.testing.assert_close(own, alone[0], atol=1e-5, rtol=1e-4)
    whole.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_an_encoder_tells_tones_apart_whatever_their_length(cli: Callable[..., Result]) -> None:
    write(count=9)
    Path("tones.yaml").write_text(SPEC)
    changes = [
        (
            "model={type: encoder, dim: 24, pool: mean, init_std: 0.1, frontend: {type: conv,"
            " stride: 2}, blocks: [{mixer: {type: attention, num_heads: 2, position: {type:"
            " rotary}}, ffn: {type: gelu}}]}"
        ),
        "data.seconds=null",
        # of 13: steps reach from one epoch into the next, whose rows are longer or shorter
        "train.batch_size=9",
    ]
    result = cli(
        "pretrain", "tones.yaml", "--out", "run", *(w for c in changes for w in ("--set", c))
    )
    assert result.status == 0, result.err
    assert (
        json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["val"]["accuracy"] == 1
    )
    assert json.loads(cli("eval", "run", "--json").out)["accuracy"] == 1
