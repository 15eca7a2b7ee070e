"""What a Vision Transformer gathers its answer from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import Result
from PIL import Image

from bigmodel_cli.attend.images import (
    ImageOptions,
    calls_of,
    look_at_image,
    rollout,
)
from bigmodel_cli.attend.layers import Wanted, layer_of
from bigmodel_cli.attend.look import Layer, Side
from bigmodel_cli.attend.patches import patches, position_of
from bigmodel_cli.attend.rollout import rolled
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import input_of
from bigmodel_cli.errors import SpecError
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.models.torchvision import as_model
from bigmodel_cli.models.vit import ViT, ViTOptions
from bigmodel_cli.parts import kernels
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.fused import AttentionSpec
from bigmodel_cli.parts.watched import AttentionCall

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
    calls, logits = calls_of(model, (image,))
    got = rollout(model, image, logits, calls, info, None)
    assert "heuristic" in got.method
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
    model = (
        "model={type: vit, dim: 16, patch: 2, blocks: [{mixer: {type: attention, num_heads: 2},"
        " ffn: {type: gelu}}]}"
    )
    trained = cli("pretrain", cnn_spec, "--set", model, "--out", "vit")
    assert trained.status == 0, trained.err
    Image.new("L", (8, 8), 90).save("grey.png")
    result = cli("attend", "vit", "grey.png", "--json", "--png", "seen.png")
    assert result.status == 0, result.err
    heat = torch.tensor(json.loads(result.out)["heat"])
    assert heat.shape == (8, 8)
    assert Path("seen.png").stat().st_size > 1000
    assert cli("predict", "vit", "grey.png").status == 0
    written = cli("attend", "vit", "grey.png", "--data", "all.safetensors")
    assert (written.status, written.out) == (0, "all.safetensors\n"), written.err
    meant = cli("attend", "vit", "grey.png", "--target", "x")
    assert (meant.status, meant.out) == (2, "")
    assert "--target is for models" in meant.err
    for option, value, fault in (
        ("--heads", "0.7", "--heads"),
        ("--query", "4,0", "rows are 0 to 3"),
        ("--cam-layer", "norms", "layers with a map of the image: "),
        ("--class", "cat", "not one of the model's outputs"),
    ):
        refused = cli("attend", "vit", "grey.png", option, value)
        assert (refused.status, refused.out) == (2, "")
        assert fault in refused.err


def test_the_rollout_of_many_layers_is_a_product_of_their_matrices() -> None:
    """Grouped keys, a bias, and a head whose second map counts less than nothing."""
    torch.manual_seed(0)
    layers, total = [], torch.eye(300, dtype=torch.float64)
    for minus in (None, torch.tensor(0.3), None):
        q, k = torch.randn(1, 4, 300, 3), torch.randn(1, 2, 300, 3)
        bias = torch.randn(4, 300, 300)
        spec = AttentionSpec(causal=minus is None)
        layers.append(Stream(AttentionCall(q, k, k, spec, q, bias=bias, minus=minus)))
        maps = []
        for head in range(4):
            scores = q[0, head] @ k[0, head // 2].T / 3**0.5 + bias[head]
            if minus is None:
                scores = scores + torch.full((300, 300), -math.inf).triu(1)
            maps.append(scores.softmax(-1).double())
        mean = sum(maps) / 4 if minus is None else (maps[0] + maps[1] - 0.3 * sum(maps[2:])) / 2
        total = (0.5 * mean + 0.5 * torch.eye(300)) @ total
    start = torch.rand(300, dtype=torch.float64)
    torch.testing.assert_close(rolled(layers, start), start @ total, atol=1e-5, rtol=1e-5)


def test_patches_registers_and_the_class_token_are_named_and_asked_for() -> None:
    side = patches(1 + 6 + 2, 1, (2, 3))
    assert side.labels == [
        "[class]", "0,0", "0,1", "0,2", "1,0", "1,1", "1,2", "[register 1]", "[register 2]",
    ]  # fmt: skip
    asked = (None, "0", "8", "1,2", "0, 1")
    assert [position_of(given, side) for given in asked] == [0, 0, 8, 6, 2]
    assert position_of(None, patches(6, 0, (2, 3))) == 4
    for given in ("9", "2,0", "0,3", "-1", "1,1,1", "a", "²", ""):
        with pytest.raises(SpecError, match="--query"):
            position_of(given, side)


@pytest.mark.parametrize("heads", [3, 4])  # PyTorch's fast path takes an even number
def test_torchvisions_vit_is_watched_without_another_result(heads: int) -> None:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=24, patch_size=8, num_layers=2, num_heads=heads, hidden_dim=12, mlp_dim=20,
        num_classes=3,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(network.heads.head.weight)
    image = torch.randn(1, 3, 24, 24)
    with torch.inference_mode():
        want = network(image)
    parts = [block.self_attention for block in network.encoder.layers]
    truth: list[torch.Tensor] = []
    for part in parts:
        own = torch.nn.MultiheadAttention(12, heads, batch_first=True).eval()
        own.load_state_dict(part.state_dict())
        part.register_forward_pre_hook(
            lambda module, args, own=own: truth.append(own(*args, average_attn_weights=False)[1][0])
        )
    model = as_model(network, "vit_tiny")
    assert (model.grid, model.first) == ((3, 3), 1)
    assert [type(part).__name__ for part in parts] == ["MultiheadAttention"] * 2
    calls, logits = calls_of(model, (image,))
    torch.testing.assert_close(logits, want, atol=1e-6, rtol=1e-5)
    assert [*calls] == [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)]
    with torch.inference_mode():
        for call, weights, part in zip(calls.values(), truth, parts, strict=True):
            found = kernels.weights(call.q, call.k, call.spec)[0]
            torch.testing.assert_close(found, weights, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(found @ call.v[0], call.output[0], atol=1e-6, rtol=1e-5)
            moved = [
                call.v[0, h]
                @ part.out_proj.weight[:, h * (12 // heads) : (h + 1) * (12 // heads)].T
                for h in range(heads)
            ]
            sizes = torch.stack(moved).norm(dim=-1)
            torch.testing.assert_close(part.value_sizes(call.v)[0], sizes, atol=1e-5, rtol=1e-4)
        # no watcher: PyTorch's own way again
        torch.testing.assert_close(model(image), want, atol=0, rtol=0)


def described(name: str, part: Attends, call: AttentionCall, side: Side, query: int) -> Layer:
    return layer_of(name, 0, part, call, (side, side), Wanted(query=query))[0]


def test_a_masked_autoencoder_is_looked_at_with_nothing_hidden(
    cnn_spec: Path, cli: Callable[..., Result]
) -> None:
    block = "{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu}}"
    model = (
        f"model={{type: vit, dim: 16, patch: 2, blocks: [{block}], reconstruct: {{dim: 8, blocks:"
        f" [{block}]}}}}"
    )
    trained = cli(
        "pretrain", cnn_spec, "--set", model, "--set", "task={type: masked_image}", "--out", "mae"
    )
    assert trained.status == 0, trained.err
    Image.new("L", (8, 8), 90).save("grey.png")
    loaded = load_checkpoint(Path("mae"), "cpu")
    look = look_at_image(loaded, "grey.png", ImageOptions(query="1,2"), described)
    names = [(layer.name, len(layer.queries), layer.query) for layer in look.layers]
    assert names == [("blocks.0.mixer", 17, 7), ("decoder.blocks.0.mixer", 17, 7)]
    assert look.difference < 1e-5
    assert look.heat is not None
    assert look.heat.heat is None
    assert look.answer == ""
    assert "none was hidden" in look.notes[0]
    for options in (ImageOptions(cam="gradcam"), ImageOptions(target="a")):
        with pytest.raises(SpecError, match="rebuilds hidden patches"):
            look_at_image(loaded, "grey.png", options)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_heads_of_a_vit_read_patches(
    pool: str, cnn_spec: Path, cli: Callable[..., Result]
) -> None:
    """Against the model's own matrices: what a patch reads, and how far the patches look."""
    block = "{repeat: 2, mixer: {type: attention, num_heads: 2}, ffn: {type: gelu}}"
    model = f"model={{type: vit, dim: 16, patch: 4, pool: {pool}, registers: 2, blocks: [{block}]}}"
    trained = cli("pretrain", cnn_spec, "--set", model, "--set", "train.steps=2", "--out", "vit")
    assert trained.status == 0, trained.err
    Image.effect_noise((8, 8), 90).save("noise.png")
    loaded = load_checkpoint(Path("vit"), "cpu")
    look = look_at_image(loaded, "noise.png", ImageOptions(), described)
    layer = look.layers[1]
    first = int(pool == "cls")
    assert (layer.name, layer.queries.grid, layer.queries.first) == (
        "blocks.1.mixer",
        (2, 2),
        first,
    )
    assert layer.query == (0 if first else 3)
    assert any("--query ROW,COLUMN" in note for note in look.notes) == (pool == "mean")
    assert look.heat is not None
    assert look.heat.trial is not None
    inputs: list[torch.Tensor] = []
    mixer = loaded.model.blocks[1].mixer
    mixer.register_forward_hook(lambda module, args, output: inputs.append(args[0][0]))
    reader = input_of(loaded.info).reader(loaded.spec.data, loaded.assets)
    with torch.no_grad():
        loaded.model(reader.batch([reader.read("noise.png", "x")[0]])["image"])
        q, k, _ = mixer.qkv(inputs[0]).view(-1, 6, 8).transpose(0, 1).split(2)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close(layer.read, weights[:, layer.query], atol=1e-6, rtol=1e-5)
    places = [(r, c) for r in range(2) for c in range(2)]
    for head in range(2):
        each = []
        for i, (r, c) in enumerate(places):
            own = [float(weights[head, first + i, first + j]) for j in range(4)]
            far = [math.hypot(r - s, c - d) for s, d in places]
            each.append(sum(w * x for w, x in zip(own, far, strict=True)) / sum(own))
        assert float(layer.statistics.distance[head]) == pytest.approx(sum(each) / 4, abs=1e-5)


def test_registers_a_class_token_and_sinks_beside_the_keys_in_a_rollout() -> None:
    """Against dense matrices: what goes to a sink beside the keys is gone, and rows sum to less."""
    torch.manual_seed(7)
    first, patch_count, registers, heads = 1, 6, 3, 5
    length = first + patch_count + registers
    layers, total = [], torch.eye(length, dtype=torch.float64)
    for number in range(3):
        q, k = torch.randn(2, 1, heads, length, 4).unbind(0)
        sinks = torch.randn(heads) if number != 1 else None
        call = AttentionCall(q, k, k, AttentionSpec(causal=False), q, sinks=sinks)
        layers.append(Stream(call))
        mean = torch.zeros(length, length, dtype=torch.float64)
        for head in range(heads):
            scores = (q[0, head] @ k[0, head].T / 2).double().exp()
            beside = 0.0 if sinks is None else math.exp(float(sinks[head]))
            mean += scores / (scores.sum(1, keepdim=True) + beside) / heads
        total = (0.5 * mean + 0.5 * torch.eye(length)) @ total
    start = torch.zeros(length)
    start[0] = 1
    got = rolled(layers, start)
    torch.testing.assert_close(got, total[0], atol=1e-6, rtol=1e-5)
    assert 0.3 < float(got.sum()) < 1
    assert float(got[first + patch_count :].sum()) > 0.05  # registers are read, and not drawn
