"""Which weights Muon takes and which decay, for every kind of model: tables written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models import ModelOptions, build
from bigmodel_cli.optim import AdamWOptions, MuonOptions, SGDOptions, describe_weights, summary
from bigmodel_cli.roles import MATRIX, OUTER, Role, named_weights

IMAGES = DatasetInfo(image_shape=(3, 32, 32), classes=tuple("abc"))
TOKENS = DatasetInfo(vocab_size=11, context=8)
FRAMES = DatasetInfo(frame_width=5, context=32, classes=tuple("abcd"))


def model_of(values: dict[str, Any], info: DatasetInfo) -> nn.Module:
    return build(TypeAdapter(ModelOptions).validate_python(values), info)


CNN = {
    "type": "cnn",
    "layers": [
        {
            "type": "residual",
            "layers": [
                {"type": "conv", "channels": 6, "padding": 1},
                {"type": "conv", "channels": 6, "padding": 1, "norm": "batch"},
            ],
        },
        {"type": "conv", "channels": 6, "groups": 6},
        {"type": "conv", "channels": 12, "groups": 2},
        {"type": "adaptive_pool"},
        {"type": "flatten"},
        {"type": "dense", "units": 9},
        {"type": "dense", "units": "classes"},
    ],
}  # fmt: skip
MIXER = {
    "type": "attention", "num_heads": 4, "kv_heads": 2, "sinks": True, "qk_norm": True,
    "bias": False, "position": {"type": "t5"},
}  # fmt: skip
GELU = {"type": "gelu", "bias": True}
BLOCKS = [{"mixer": MIXER, "ffn": {"type": "swiglu"}, "layer_scale": 0.1}]
VIT = {"type": "vit", "dim": 16, "patch": 16, "registers": 2, "blocks": BLOCKS}
MAE = {
    **VIT,
    "position": "sines",
    "reconstruct": {"dim": 8, "blocks": [{"mixer": {"type": "attention", "num_heads": 2}}]},
}
MOE = {
    "type": "decoder", "dim": 16, "position": {"type": "learned"},
    "blocks": [
        {"mixer": {"type": "differential", "num_heads": 2},
         "ffn": {"type": "moe", "experts": 3, "shared": 1, "hidden": 8}},
        {"mixer": {"type": "mla", "num_heads": 2, "kv_rank": 6, "q_rank": 5, "rotary_dim": 4},
         "ffn": GELU},
    ],
}  # fmt: skip
GATED = {"num_heads": 4, "kv_heads": 2, "gate": "full", "bias": ["k", "g"], "qk_norm": True}
GATES = {
    "type": "seq2seq", "dim": 16, "share_embeddings": False,
    "encoder": [{"mixer": {"type": "attention", **GATED, "gate": "head"}}],
    "decoder": [{"mixer": {"type": "attention", **GATED, "bias": ["q", "k", "v", "o"]},
                 "cross": GATED}],
}  # fmt: skip
RECURRENT = {
    "type": "decoder", "dim": 16, "tie_embeddings": False,
    "blocks": [
        {"mixer": {"type": "mamba2", "state": 4, "head_dim": 8, "groups": 1}},
        {"mixer": {"type": "gated_deltanet", "num_heads": 4, "key_heads": 2}},
        {"mixer": {"type": "convolution", "kernel": 3}},
        {"mixer": {"type": "retention", "num_heads": 2}},
    ],
}  # fmt: skip
SEQ2SEQ = {
    "type": "seq2seq", "dim": 16, "share_embeddings": False,
    "encoder": [{"mixer": {"type": "attention", "num_heads": 2}, "ffn": GELU}],
    "decoder": [{"mixer": {"type": "attention", "num_heads": 2},
     "cross": {"num_heads": 4, "kv_heads": 2}}],
}  # fmt: skip
SOUND = {
    "type": "encoder",
    "dim": 16,
    "frontend": {"type": "conv", "stride": 4, "channels": 6},
    "blocks": [{"ffn": GELU}],
}
BERT = {
    "type": "encoder",
    "dim": 16,
    "token_types": 2,
    "blocks": [{"ffn": GELU}],
    "position": {"type": "learned"},
}
LABELS = {**BERT, "pooler": True}

TABLES: dict[str, tuple[dict[str, Any], DatasetInfo, dict[str, tuple[int, ...]], set[str]]] = {
    # of each: the hidden matrices with the rows of each where there are several, and what decays
    # without being one
    "cnn": (
        CNN, IMAGES,
        {"layers.0.layers.1.conv": (), "layers.2.conv": (6, 6), "layers.5.dense": ()},
        {"layers.0.layers.0.conv", "layers.0.shortcut.conv", "layers.1.conv", "layers.6.dense"},
    ),
    "resnet18": (
        {"type": "torchvision", "name": "resnet18"}, IMAGES,
        {
            **{f"layer{i}.{j}.conv{k}": () for i in (1, 2, 3, 4) for j in (0, 1) for k in (1, 2)},
            **{f"layer{i}.0.downsample.0": () for i in (2, 3, 4)},
        },
        {"conv1", "fc"},
    ),
    "vit": (
        VIT, IMAGES,
        {"blocks.0.mixer.qkv": (16, 8, 8), "blocks.0.mixer.out": (),
         **{f"blocks.0.ffn.{n}": () for n in ("gate", "up", "down")}},
        {"patches", "head"},
    ),
    "mae": (
        MAE, IMAGES,
        {
            "blocks.0.mixer.qkv": (16, 8, 8), "blocks.0.mixer.out": (),
            **{f"blocks.0.ffn.{n}": () for n in ("gate", "up", "down")},
            "decoder.enter": (), "decoder.blocks.0.mixer.qkv": (8, 8, 8),
            "decoder.blocks.0.mixer.out": (),
        },
        {"patches", "decoder.pixels"},
    ),
    "decoder with experts": (
        MOE, TOKENS,
        {
            "blocks.0.mixer.qkv": (16, 16, 16), "blocks.0.mixer.out": (), "blocks.0.ffn.gate*": (),
            "blocks.0.ffn.up*": (),
            "blocks.0.ffn.down*": (),
            **{f"blocks.0.ffn.shared.{n}": () for n in ("gate", "up", "down")},
            "blocks.1.mixer.q_down": (), "blocks.1.mixer.q_up": (),
            "blocks.1.mixer.kv_down": (6, 4), "blocks.1.mixer.kv_up": (),
            "blocks.1.mixer.out": (), "blocks.1.ffn.up": (), "blocks.1.ffn.down": (),
        },
        {"embedding", "blocks.0.ffn.router"},
    ),
    "recurrent decoder": (
        RECURRENT, TOKENS,
        {
            "blocks.0.mixer.input": (32, 32, 4, 4, 4), "blocks.0.mixer.out": (),
            "blocks.1.mixer.qkv": (8, 8, 16), "blocks.1.mixer.gate": (),
            "blocks.1.mixer.rates": (4, 4), "blocks.1.mixer.out": (),
            "blocks.2.mixer.input": (16, 16, 16), "blocks.2.mixer.out": (),
            "blocks.3.mixer.qkv": (16, 16, 16), "blocks.3.mixer.gate": (), "blocks.3.mixer.out": (),
        },
        {"embedding", "head", *(f"blocks.{i}.mixer.conv" for i in (0, 1, 2))},
    ),
    "seq2seq": (
        SEQ2SEQ, TOKENS,
        {
            "encoder.0.mixer.qkv": (16, 16, 16), "encoder.0.mixer.out": (), "encoder.0.ffn.up": (),
            "encoder.0.ffn.down": (),
            "decoder.0.mixer.qkv": (16, 16, 16), "decoder.0.mixer.out": (),
            "decoder.0.cross.q": (), "decoder.0.cross.kv": (8, 8), "decoder.0.cross.out": (),
        },
        {"source_embedding", "target_embedding", "head"},
    ),
    "gates": (
        GATES, TOKENS,
        {
            "encoder.0.mixer.qkv": (16, 8, 8, 4), "encoder.0.mixer.out": (),
            "decoder.0.mixer.qkv": (16, 8, 8, 16), "decoder.0.mixer.out": (),
            "decoder.0.cross.q": (16, 16), "decoder.0.cross.kv": (8, 8), "decoder.0.cross.out": (),
        },
        {"source_embedding", "target_embedding", "head"},
    ),
    "encoder of sound": (
        SOUND, FRAMES,
        {"frontend.convs.1": (), "frontend.convs.2": (), "blocks.0.ffn.up": (),
         "blocks.0.ffn.down": ()},
        {"frontend.convs.0", "head"},
    ),
    "masked language model": (
        BERT, TOKENS,
        {"blocks.0.ffn.up": (), "blocks.0.ffn.down": (), "head.dense": ()},
        {"embedding", "types"},
    ),
    "encoder of texts with labels": (
        LABELS, DatasetInfo(vocab_size=11, context=8, classes=("a", "b")),
        {"blocks.0.ffn.up": (), "blocks.0.ffn.down": (), "pooler": ()},
        {"embedding", "types", "head"},
    ),
    "alexnet": (
        {"type": "torchvision", "name": "alexnet"},
        DatasetInfo(image_shape=(3, 64, 64), classes=("a", "b")),
        {**{f"features.{i}": () for i in (3, 6, 8, 10)}, "classifier.1": (), "classifier.4": ()},
        {"features.0", "classifier.6"},
    ),
    "squeezenet": (
        {"type": "torchvision", "name": "squeezenet1_1"},
        DatasetInfo(image_shape=(3, 64, 64), classes=("a", "b")),
        {f"features.{i}.{part}": () for i in (3, 4, 6, 7, 9, 10, 11, 12) for part in ("squeeze",
         "expand1x1", "expand3x3")},
        {"features.0", "classifier.1"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_the_hidden_matrices_and_what_decays(name: str) -> None:
    values, info, matrices, decayed = TABLES[name]
    weights = named_weights(model_of(values, info))
    found = {w.name: w.role for w in weights}
    full = {
        k.removesuffix("*") if k.endswith("*") else f"{k}.weight": rows
        for k, rows in matrices.items()
    }
    assert {n: r.rows for n, r in found.items() if r.matrix} == full
    assert {n for n, r in found.items() if r.stacked} == {
        k[:-1] for k in matrices if k.endswith("*")
    }
    assert {n for n, r in found.items() if r.decayed} == full.keys() | {
        f"{n}.weight" for n in decayed
    }
    for w in weights:  # the matrices of a weight are all of it
        if w.role.matrix:
            assert torch.equal(w.role.joined(w.role.matrices(w.tensor), w.tensor), w.tensor)
            assert not w.role.rows or sum(w.role.rows) == len(w.tensor)


def on_meta(name: str, info: DatasetInfo) -> nn.Module:
    """A network of torchvision without storage (RegNet alone cannot be built so)."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return model_of({"type": "torchvision", "name": name}, info).to("meta")


def test_torchvision_networks_with_bare_parameters() -> None:
    vit = {w.name: w.role for w in named_weights(on_meta("vit_b_32", IMAGES))}
    assert vit["encoder.layers.encoder_layer_3.self_attention.in_proj_weight"] == Role(
        True, True, (768, 768, 768)
    )
    assert vit["encoder.layers.encoder_layer_3.self_attention.out_proj.weight"] == MATRIX
    assert vit["conv_proj.weight"] == vit["heads.head.weight"] == OUTER
    for name in ("class_token", "encoder.pos_embedding", "encoder.ln.weight"):
        assert vit[name] == Role()
    swin = {w.name: w.role for w in named_weights(on_meta("swin_v2_t", IMAGES))}
    assert swin["features.1.0.attn.qkv.weight"] == MATRIX
    for end in ("logit_scale", "cpb_mlp.0.weight", "cpb_mlp.2.weight"):
        assert swin[f"features.1.0.attn.{end}"] == Role()
    mobile = {w.name: w.role for w in named_weights(on_meta("mobilenet_v3_small", IMAGES))}
    assert mobile["features.1.block.0.0.weight"] == OUTER  # one filter for each channel
    assert mobile["features.1.block.1.fc1.weight"] == MATRIX


NETWORKS = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet",
 "inception_v3", "mnasnet0_5", "mobilenet_v2",
            "regnet_x_400mf", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t",
            "vgg11", "vit_b_16"]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_and_the_last_layer_are_those_that_see_the_image_and_make_the_logits(
    name: str,
) -> None:
    size = 96 if name != "vit_b_16" else 64
    model = on_meta(name, DatasetInfo(image_shape=(3, size, size), classes=tuple("abcde")))
    called: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size, device="meta"))
    roles = {w.name: w.role for w in named_weights(model)}
    assert roles[f"{called[0]}.weight"] == roles[f"{called[-1]}.weight"] == OUTER
    between = [roles[f"{path}.weight"] for path in called[1:-1]]
    assert sum(role.matrix for role in between) > 0.6 * len(between)
    filters = {
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] == 1
    }
    assert {n for n in called[1:-1] if not roles[f"{n}.weight"].matrix} == filters & set(called)


class Tied(nn.Module):
    """A matrix used twice: hidden, and to make the logits; and a position table that is tied to a
    bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.inner.weight

    def weight_roles(self) -> dict[str, Role]:
        return {"head.weight": OUTER}


def test_a_weight_with_two_names_is_a_matrix_where_it_is_one_under_both() -> None:
    assert {w.name: w.role for w in named_weights(Tied())} == {
        "inner.weight": OUTER, "inner.bias": Role(), "head.bias": Role(),
    }  # fmt: skip


def test_a_role_of_a_weight_that_is_not_there_is_an_error() -> None:
    class Wrong(nn.Linear):
        def weight_roles(self) -> dict[str, Role]:
            return {"wieght": OUTER}

    with pytest.raises(ValueError, match="names 'wieght', which is not a weight of it"):
        named_weights(nn.Sequential(Wrong(2, 3)))


@pytest.mark.parametrize("options", [AdamWOptions(weight_decay=0.5), SGDOptions(weight_decay=0.5)])
def test_without_a_gradient_only_what_decays_moves(options: Any) -> None:
    torch.manual_seed(0)
    model = model_of(VIT, IMAGES)
    for p in model.parameters():
        nn.init.normal_(p)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options.build(named_weights(model)).step(0.1, 1.0)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    matrices, decayed = TABLES["vit"][2:]
    assert moved == {f"{name}.weight" for name in [*matrices, *decayed]}


def test_the_optimizer_of_each_weight_is_described() -> None:
    model = model_of({"type": "cnn", "layers": [
        {"type": "conv", "channels": 2}, {"type": "conv", "channels": 4}, {"type": "adaptive_pool"},
        {"type": "flatten"},
        {"type": "dense", "units": "classes"},
    ]}, IMAGES)  # fmt: skip
    model.get_parameter("layers.4.dense.bias").requires_grad_(False)
    described = describe_weights(MuonOptions(weight_decay=0.1), named_weights(model))
    assert described[2] == {
        "name": "layers.1.conv.weight",
        "shape": [4, 2, 3, 3],
        "optimizer": "muon",
        "decayed": True,
    }
    assert described[0] == {
        "name": "layers.0.conv.weight",
        "shape": [2, 3, 3, 3],
        "optimizer": "adamw",
        "decayed": False,
    }
    assert described[5] == {
        "name": "layers.4.dense.bias",
        "shape": [3],
        "optimizer": None,
        "decayed": False,
    }
    assert (
        summary(described)
        == "adamw 4 tensors (72 numbers), muon 1 tensor (72 numbers); weight decay on 1 of 5"
        " tensors; 1 tensor frozen"
    )
