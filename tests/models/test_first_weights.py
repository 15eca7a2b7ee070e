"""First weights: the deviation or bounds of every tensor of every skeleton, against the formulas of
the papers written anew.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models.cnn import CNN, CNNOptions
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.models.encoder import Encoder, EncoderOptions, FrameEncoder
from bigmodel_cli.models.seq2seq import Seq2Seq, Seq2SeqOptions
from bigmodel_cli.models.vit import ViT, ViTOptions
from bigmodel_cli.parts.context import LayerContext
from bigmodel_cli.parts.moe import MoEOptions

C = 48
ATTENTION = {"type": "attention", "num_heads": 6, "kv_heads": 2, "bias": True}
MLA = {
    "type": "mla",
    "num_heads": 3,
    "kv_rank": 20,
    "q_rank": 28,
    "head_dim": 16,
    "rotary_dim": 8,
    "value_dim": 12,
}
MIXERS: dict[str, dict[str, Any]] = {
    "attention": ATTENTION,
    "mla": MLA,
    "differential": {"type": "differential", "num_heads": 3},
    "mamba2": {"type": "mamba2", "state": 10, "head_dim": 12, "groups": 2},
    "gated_deltanet": {
        "type": "gated_deltanet",
        "num_heads": 4,
        "key_heads": 2,
        "key_dim": 10,
        "value_dim": 14,
    },
    "convolution": {"type": "convolution", "bias": True},
    "retention": {"type": "retention", "num_heads": 3},
}
FFNS: dict[str, dict[str, Any]] = {
    "gelu": {"type": "gelu", "hidden": 120},
    "swiglu": {"type": "swiglu", "hidden": 88},
    "moe": {"type": "moe", "experts": 6, "hidden": 40, "shared": 2},
}
FACTS = DatasetInfo(vocab_size=300, context=32)
ROWS: dict[str, list[int]] = {  # of each fused projection the outputs of its matrices, in order
    "attention.qkv": [48, 16, 16],
    "cross.kv": [32, 32],
    "differential.qkv": [48, 48, 48],
    "mamba2.input": [96, 96, 20, 20, 8],
    "gated_deltanet.qkv": [20, 20, 56],
    "gated_deltanet.rates": [4, 4],
    "convolution.input": [48, 48, 48],
    "retention.qkv": [48, 48, 48],
    "mla.kv_down": [20, 8],
}
OWN = (
    "log_a",
    "dt_bias",
    "factors",
    "conv.weight",
    "conv.bias",
    ".d",
    "norm.weight",
    "norm.bias",
    "_norm.weight",
)
"""Ends of names of weights that are not matrices: what a part draws for itself, and normalisation.
"""


def normal(values: Tensor, std: float) -> None:
    """Zero mean, this deviation, and the fourth moment of a normal distribution, within five
    standard errors.
    """
    x, n = values.detach().double().flatten(), values.numel()
    assert abs(float(x.mean())) < 5 * std / n**0.5
    assert abs(float(x.std(correction=0)) / std - 1) < 5 / (2 * n) ** 0.5, (float(x.std()), std)
    if n > 3000:
        assert abs(float((x / std).pow(4).mean()) - 3) < 5 * (96 / n) ** 0.5


def even(values: Tensor, bound: float) -> None:
    """Uniform within +-bound: nothing beyond, close to it, deviation bound / sqrt(3)."""
    x, n = values.detach().double().flatten(), values.numel()
    assert float(x.abs().max()) <= bound * (1 + 1e-6), (float(x.abs().max()), bound)
    assert float(x.abs().max()) > bound * (1 - 16 / n), (float(x.abs().max()), bound)
    assert abs(float(x.std(correction=0)) / (bound / 3**0.5) - 1) < 5 * (0.2 / n) ** 0.5


def glorot(matrix: Tensor) -> None:
    """Of a matrix (out, in)."""
    even(matrix, math.sqrt(6 / (matrix.shape[0] + matrix.shape[1])))


def pieces(kind: str, name: str, weight: Tensor) -> list[Tensor]:
    """The matrices (out, in) in a weight of a mixer of this kind."""
    layer = name.split(".")[-2]
    if kind == "mla" and layer in ("q_up", "kv_up"):
        first, second = (16, 8) if layer == "q_up" else (16, 12)
        heads = weight.view(3, first + second, -1)
        return [heads[:, :first].flatten(0, 1), heads[:, first:].flatten(0, 1)]
    rows = ROWS.get(f"{kind}.{layer}")
    return list(weight.split(rows)) if rows else [weight]


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("std", [None, 0.013])
def test_a_decoder_starts_as_gpt2_suited_to_its_width(kind: str, std: float | None) -> None:
    torch.manual_seed(0)
    block = {"repeat": 2, "mixer": MIXERS[kind]}
    values = {
        "dim": C,
        "blocks": [{**block, "ffn": f} for f in FFNS.values()] + [block],
        "position": {"type": "learned"},
    }
    values |= {"tie_embeddings": std is None, "init_std": std}
    model = Decoder(DecoderOptions.model_validate(values), FACTS)
    std = std or 1 / math.sqrt(C)
    # residual steps: mixers and feed-forward networks, and mixers alone
    slots = 2 * 2 * len(FFNS) + 2
    closing = 0
    for name, p in model.named_parameters():
        if name.endswith(OWN):
            continue
        if p.dim() == 1:
            assert not p.any(), name
            continue
        last = name.split(".", 2)[-1] in (
            "mixer.out.weight",
            "ffn.down.weight",
            "ffn.down",
            "ffn.shared.down.weight",
        )
        closing += last
        for matrix in p if p.dim() == 3 else [p]:
            normal(matrix, std / math.sqrt(slots) if last else std)
    assert closing == 2 * (4 + 3 + 1)


def test_an_encoder_starts_as_bert_suited_to_its_width() -> None:
    torch.manual_seed(1)
    blocks = [
        {"mixer": {**ATTENTION, "position": {"type": "t5", "buckets": 300}}, "ffn": f}
        for f in FFNS.values()
    ]
    for std in (None, 0.02):
        values = {
            "dim": C,
            "blocks": blocks,
            "position": {"type": "learned"},
            "token_types": 2,
            "init_std": std,
        }
        model = Encoder(EncoderOptions.model_validate(values), FACTS)
        for name, p in model.named_parameters():
            if name == "mask" or p.dim() > 1:
                normal(p, std or C**-0.5)
            elif not name.endswith(OWN):
                assert not p.any(), name
        labelled = Encoder(
            EncoderOptions.model_validate({**values, "pooler": True}),
            DatasetInfo(vocab_size=300, context=32, classes=("a",) * 9),
        )
        normal(labelled.head.weight, std or C**-0.5)  # type: ignore[arg-type]
        normal(labelled.pooler.weight, std or C**-0.5)  # type: ignore[union-attr]


def test_frames_are_read_by_convolutions_that_start_as_torchs() -> None:
    torch.manual_seed(2)
    values = {
        "dim": C,
        "blocks": [{"mixer": ATTENTION}],
        "frontend": {"type": "conv", "stride": 4, "kernel": 5},
    }
    model = FrameEncoder(
        EncoderOptions.model_validate(values),
        DatasetInfo(frame_width=7, context=90, classes=("a", "b")),
    )
    for conv in model.frontend.convs:
        assert isinstance(conv, nn.Conv1d)
        even(conv.weight, (conv.in_channels * 5) ** -0.5)
        assert conv.bias is not None
        even(conv.bias, (conv.in_channels * 5) ** -0.5)
    normal(model.blocks[0].mixer.qkv.weight, C**-0.5)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("shared", [True, False])
def test_an_encoder_decoder_starts_as_tensor2tensor_s(kind: str, shared: bool) -> None:
    torch.manual_seed(3)
    cross = {"num_heads": 8, "kv_heads": 4, "head_dim": 8}
    decoder = [{"mixer": MIXERS[kind], "cross": cross, "ffn": f} for f in FFNS.values()]
    values = {
        "dim": C,
        "encoder": [{"mixer": ATTENTION}],
        "decoder": decoder,
        "share_embeddings": shared,
        "logit_bias": True,
    }
    model = Seq2Seq(Seq2SeqOptions.model_validate(values), FACTS)
    assert (model.head.weight is model.source_embedding.weight) == shared
    seen = 0
    for name, p in model.named_parameters():
        if name.endswith(OWN):
            continue
        if p.dim() == 1:
            assert not p.any(), name
        elif name.startswith(("source_embedding", "target_embedding", "head")):
            normal(p, C**-0.5)
        elif p.dim() == 3:
            assert ".ffn." in name
            for expert in p:
                glorot(expert)
        else:
            part = name.split(".")[2]
            of = (
                part
                if part in ("cross", "ffn")
                else kind
                if name.startswith("decoder.")
                else "attention"
            )
            for matrix in pieces(of, name, p):
                glorot(matrix)
                seen += 1
    assert seen >= 3 + 1 + 3 * (3 + 3)


def test_init_normal_of_an_encoder_decoder_scales_each_stack_by_its_own_depth() -> None:
    torch.manual_seed(4)
    for std in (None, 0.05):
        values = {
            "dim": C, "init": "normal", "init_std": std, "share_embeddings": False,
            "encoder": [{"repeat": 3, "mixer": ATTENTION, "ffn": FFNS["gelu"]}],
            "decoder": [{"mixer": ATTENTION, "cross": {"num_heads": 6}, "ffn": FFNS["moe"]},
             {"mixer": ATTENTION}],
        }  # fmt: skip
        model = Seq2Seq(Seq2SeqOptions.model_validate(values), FACTS)
        wanted = std or C**-0.5
        for name, p in model.named_parameters():
            if p.dim() > 1:
                depth = {"encoder": 6, "decoder": 4}.get(name.split(".")[0], 1)
                last = ".out." in name or ".down" in name
                for matrix in p if p.dim() == 3 else [p]:
                    normal(matrix, wanted / math.sqrt(depth) if last else wanted)


VIT = {
    "dim": C, "patch": 4, "registers": 40,
    "blocks": [{"mixer": {**ATTENTION, "position": {"type": "t5", "buckets": 300}}, "ffn": f}
    for f in FFNS.values()] + [{"mixer": MLA, "layer_scale": 0.3}],
}  # fmt: skip


def blocks_of_a_vit(model: Any, prefix: str, std: float, bias: float) -> None:
    """Glorot's uniform, each matrix by itself; biases zero, of feed-forward layers normal of
    deviation `bias`.
    """
    for name, p in model.named_parameters():
        if not name.startswith(prefix) or name.endswith(OWN):
            continue
        kind = "mla" if "blocks.3." in name else "attention"
        if "bias.table" in name:
            normal(p, std)
        elif name.endswith("_scale"):
            assert bool((p == 0.3).all())
        elif p.dim() == 1:
            if ".ffn." in name and bias:
                normal(p, bias)
            else:
                assert not p.any(), name
        elif p.dim() == 3:
            for expert in p:
                glorot(expert)
        else:
            for matrix in pieces("ffn" if ".ffn." in name else kind, name, p):
                glorot(matrix)


@pytest.mark.parametrize("std", [0.02, 0.3])
def test_a_vit_starts_as_its_authors(std: float) -> None:
    torch.manual_seed(5)
    info = DatasetInfo(image_shape=(3, 40, 40), classes=("a", "b"))
    model = ViT(ViTOptions.model_validate({**VIT, "init_std": std}), info)
    lecun = 1 / math.sqrt(3 * 4 * 4)
    x = model.patches.weight.detach().flatten()
    assert abs(float(x.std()) / lecun - 1) < 5 / (2 * x.numel()) ** 0.5
    # cut at two deviations of what is cut
    assert float(x.abs().max()) <= 2 * lecun / 0.8796256610342398 * (1 + 1e-6)
    assert float(x.abs().max()) > 2 * lecun
    for p in (model.patches.bias, model.cls, model.head.weight, model.head.bias):  # type: ignore[union-attr]
        assert p is not None
        assert not p.any()
    normal(model.table, std)  # type: ignore[arg-type]
    normal(model.registers, 1e-6)  # type: ignore[arg-type]
    blocks_of_a_vit(model, "blocks.", std, 1e-6)


def test_a_masked_autoencoder_starts_as_its_authors() -> None:
    torch.manual_seed(6)
    decoder = {
        "dim": 32,
        "blocks": [{"mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}],
    }
    values = {**VIT, "position": "sines", "reconstruct": decoder, "registers": 0}
    model: Any = ViT(ViTOptions.model_validate(values), DatasetInfo(image_shape=(3, 40, 40)))
    glorot(model.patches.weight.flatten(1))
    assert not model.patches.bias.any()
    normal(model.cls, 0.02)
    normal(model.decoder.mask, 0.02)
    blocks_of_a_vit(model, "blocks.", 0.02, 0.0)
    for name, p in model.decoder.named_parameters():
        if name.endswith(
            ("enter.weight", "pixels.weight", "out.weight", "up.weight", "down.weight")
        ):
            glorot(p)
        elif name.endswith("qkv.weight"):
            for matrix in p.chunk(3):
                glorot(matrix)
        elif name.endswith(".bias"):
            assert not p.any(), name


def test_a_cnn_starts_as_torchs_layers() -> None:
    torch.manual_seed(7)
    layers: list[dict[str, Any]] = [
        {"type": "conv", "channels": 12, "kernel": 5},
        {"type": "conv", "channels": 24, "groups": 4, "norm": "batch"},
        {"type": "residual", "layers": [{"type": "conv", "channels": 30, "padding": "same"}]},
        {"type": "flatten"},
        {"type": "dense", "units": "classes"},
    ]
    model = CNN(
        CNNOptions.model_validate({"layers": layers}),
        DatasetInfo(image_shape=(3, 12, 12), classes=("a", "b")),
    )
    inputs = {
        "layers.0.conv": 75,
        "layers.1.conv": 27,
        "layers.2.layers.0.conv": 216,
        "layers.2.shortcut.conv": 24,
    }
    inputs["layers.4.dense"] = 30 * 36
    for name, p in model.named_parameters():
        layer = name.rsplit(".", 1)[0]
        if layer in inputs:
            even(p, inputs[layer] ** -0.5) if p.numel() > 2 else None
        else:
            assert bool((p == (1.0 if name.endswith("weight") else 0.0)).all()), name
    assert inputs.keys() <= {name.rsplit(".", 1)[0] for name, _ in model.named_parameters()}


def test_what_recurrent_parts_draw_for_themselves() -> None:
    torch.manual_seed(8)
    mixer = {"mamba2": {"type": "mamba2", "head_dim": 2, "kernel": 3}}
    mixer["gated_deltanet"] = {"type": "gated_deltanet", "num_heads": 48, "key_dim": 4, "kernel": 3}
    for kind, options in mixer.items():
        values = {"dim": C, "blocks": [{"repeat": 30, "mixer": options}]}
        model = Decoder(DecoderOptions.model_validate(values), FACTS)
        parts: list[Any] = [block.mixer for block in model.blocks]
        steps = (
            torch.cat([nn.functional.softplus(p.dt_bias) for p in parts]).detach().double().log()
        )
        # between 0.001 and 0.1, evenly on a logarithmic scale
        even(steps - math.log(0.01), math.log(10))
        even(torch.cat([p.log_a for p in parts]).double().exp() - 8.5, 7.5)  # between 1 and 16
        even(torch.cat([p.conv.weight.flatten() for p in parts]), 3**-0.5)
        assert all(p.conv.bias is None or not p.conv.bias.any() for p in parts)
        assert kind != "mamba2" or all(bool((p.d == 1).all()) for p in parts)
    values = {
        "dim": C,
        "blocks": [{"repeat": 30, "mixer": {"type": "differential", "num_heads": 1}}],
    }
    model = Decoder(DecoderOptions.model_validate(values), FACTS)
    normal(torch.cat([block.mixer.factors.flatten() for block in model.blocks]), 0.1)  # type: ignore[union-attr, operator]


def test_experts_alone_start_as_linear_layers() -> None:
    torch.manual_seed(9)
    part = MoEOptions(experts=3, hidden=24).build(LayerContext(C, 8))
    for expert in (*part.gate, *part.up):
        even(expert, C**-0.5)
    for expert in part.down:
        even(expert, 24**-0.5)
