"""Layers taken from published networks equal transformers' with the same layers in their lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published import drawn, off, saved, written
from torch import Tensor, nn

from bigmodel_cli.assemble import assemble
from bigmodel_cli.checkpoints import load_weights
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.exporting import express, folder_files
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import Model
from bigmodel_cli.spec import Spec, from_dict, load, of_checkpoint
from bigmodel_cli.taken_layers import with_depth
from bigmodel_cli.yaml_scalars import dump_yaml

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 53, "hidden_size": 24, "intermediate_size": 28, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
FULL, SLIDING = "full_attention", "sliding_attention"
DECODERS: dict[str, dict[str, Any]] = {
    # local layers with a rotation of their own
    "gemma3_text": {
        "num_hidden_layers": 6, "sliding_window": 3, "query_pre_attn_scalar": 8,
        "layer_types": [SLIDING, SLIDING, FULL] * 2,
    },
    # every second layer without positions
    "smollm3": {"num_hidden_layers": 5, "no_rope_layers": [1, 0, 1, 0, 1]},
    # layers of two kinds of mixer
    "qwen3_5_text": {
        "num_hidden_layers": 5, "linear_key_head_dim": 6, "linear_value_head_dim": 10,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "head_dim": 16,
        "layer_types": ["linear_attention", FULL, "linear_attention", "linear_attention", FULL],
    },
    "gpt_oss": {
        "num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 4, "layer_types": [SLIDING, FULL] * 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 900.0},
    },
}  # fmt: skip
TAKEN = {
    "gemma3_text": [2, 1, 5],
    "smollm3": [3, 4, 0],
    "qwen3_5_text": [4, 0],
    "gpt_oss": [1, 3, 2],
}


def student(folder: Path, layers: Any, **more: Any) -> tuple[Spec, Model]:
    """The spec and the network of these layers, as a finetuning starts with it."""
    base, info = opening.read_spec(folder), DatasetInfo.from_json(opening.read(folder).info)
    init = {"checkpoint": str(folder), "layers": layers}
    spec = from_dict({**base, **more, "init": init}, name="base")
    spec = with_depth(spec, of_checkpoint(base, folder), folder)
    return spec, assemble(spec, info, torch.device("cpu"), folder).eval()


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_options_of_the_layers_travel_with_them(name: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(name, **{**SIZES, **DECODERS[name]})
    eager = {"attn_implementation": "eager"}
    theirs = drawn(transformers.AutoModelForCausalLM.from_config(config, **eager))
    spec, ours = student(saved(theirs, tmp_path / "theirs"), TAKEN[name])
    layers = TAKEN[name]
    theirs.model.layers = nn.ModuleList([theirs.model.layers[i] for i in layers])
    theirs.config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        theirs.config.layer_types = [config.layer_types[i] for i in layers]
    row = torch.randint(53, (2, 11), generator=torch.Generator().manual_seed(4))
    want = theirs(row, use_cache=False).logits
    assert off(ours(row), want) <= 1e-5
    info = DatasetInfo.from_json(opening.read(tmp_path / "theirs").info)
    found = express(spec.model, info, "causal_lm")
    out = tmp_path / "out"
    out.mkdir()
    for file, pieces in folder_files(found, spec.model, info, "causal_lm", ours.state_dict(), {}):
        (out / file).write_bytes(b"".join(bytes(piece) for piece in pieces))
    back = transformers.AutoModelForCausalLM.from_pretrained(out, **eager).eval()
    assert back.config.num_hidden_layers == len(layers)
    assert off(back(row).logits, want) <= 1e-5


@torch.no_grad()
def test_bert_without_its_odd_layers_is_written_too(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=41, hidden_size=24, num_hidden_layers=6, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=19,
    )  # fmt: skip
    theirs = drawn(transformers.BertForMaskedLM(config))
    folder = saved(theirs, tmp_path / "theirs")
    spec, ours = student(folder, [0, 2, 4])
    every = theirs.bert.encoder.layer
    theirs.bert.encoder.layer = nn.ModuleList([every[i] for i in (0, 2, 4)])
    rows = torch.randint(1, 41, (3, 13), generator=torch.Generator().manual_seed(6))
    want = theirs(rows).logits
    assert off(ours(rows), want) <= 1e-5
    # what is written opens there again, with the depth of its own
    theirs.config.num_hidden_layers = 3
    theirs.save_pretrained(tmp_path / "fewer")
    again, _ = _read(tmp_path / "fewer")
    assert spec.to_dict()["model"]["blocks"] == again.to_dict()["model"]["blocks"]
    out = written(tmp_path / "fewer", ours, tmp_path / "out")
    back = transformers.BertForMaskedLM.from_pretrained(out).eval()
    assert back.config.num_hidden_layers == 3
    assert torch.equal(back(rows).logits, want)


def _read(folder: Path) -> tuple[Spec, DatasetInfo]:
    contents = opening.read(folder)
    return of_checkpoint(contents.spec, folder), DatasetInfo.from_json(contents.info)


@pytest.mark.parametrize("layers", [{"encoder": [1, 3], "decoder": [2, 1]}, {"decoder": [1]}])
@torch.no_grad()
def test_both_sides_of_t5(layers: dict[str, list[int]], tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=41, d_model=20, d_kv=6, d_ff=36, num_layers=4, num_decoder_layers=3,
        num_heads=3, relative_attention_num_buckets=10, relative_attention_max_distance=17,
        n_positions=70,
    )  # fmt: skip
    theirs = drawn(transformers.T5ForConditionalGeneration(config), 0.15)
    _, ours = student(saved(theirs, tmp_path / "theirs"), layers)
    for side, numbers in layers.items():
        stack = getattr(theirs, side)
        # the bias by distance, which all layers share, is in the first
        bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias
        stack.block = nn.ModuleList([stack.block[i] for i in numbers])
        attention = stack.block[0].layer[0].SelfAttention
        attention.has_relative_attention_bias, attention.relative_attention_bias = True, bias
    draw = torch.Generator().manual_seed(2)
    source, target = (torch.randint(1, 40, (2, n), generator=draw) for n in (11, 7))
    want = theirs(input_ids=source, decoder_input_ids=target, use_cache=False).logits
    assert off(ours(source, target), want) <= 1e-5


@torch.no_grad()
def test_the_layers_of_a_vit(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=3, intermediate_size=30,
        image_size=16, patch_size=4, num_labels=3,
    )  # fmt: skip
    theirs = drawn(transformers.ViTForImageClassification(config))
    _, ours = student(saved(theirs, tmp_path / "theirs"), [3, 1])
    holder, name = _list_of(theirs, 4)
    every = getattr(holder, name)
    setattr(holder, name, nn.ModuleList([every[i] for i in (3, 1)]))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert off(ours(images), theirs(images).logits) <= 1e-5


def _list_of(model: nn.Module, count: int) -> tuple[Any, str]:
    """Where a network keeps its list of so many layers."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, name
    raise AssertionError("no such list")


@torch.no_grad()
def test_the_layers_of_timms_vit(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3}
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, **settings).eval()
    folder = tmp_path / "theirs"
    folder.mkdir()
    from safetensors.torch import save_file

    drawn(theirs)
    save_file(theirs.state_dict(), folder / "model.safetensors")
    values = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 3, "num_features": 24,
        "global_pool": "token", "model_args": settings,
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.5] * 3,
                           "num_classes": 3},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    _, ours = student(folder, [0, 3])
    theirs.blocks = nn.Sequential(theirs.blocks[0], theirs.blocks[3])
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert off(ours(images), theirs(images)) <= 1e-5


def test_layers_of_another_kind_are_refused(tmp_path: Path) -> None:
    """A network that the spec describes itself is not filled with other layers' weights."""
    config = transformers.AutoConfig.for_model(
        "gemma3_text", **{**SIZES, **DECODERS["gemma3_text"]}
    )
    folder = saved(drawn(transformers.AutoModelForCausalLM.from_config(config)), tmp_path / "of")
    base = opening.read_spec(folder)
    other = json.loads(json.dumps(base["model"]))
    whole = [{**block, "repeat": 1} for block in other["blocks"] for _ in range(block["repeat"])]
    other["blocks"] = whole[:2]  # two local ones
    stored = of_checkpoint(base, folder)
    own = tmp_path / "own.yaml"
    own.write_text(dump_yaml({"model": other}))
    spec = load(own, [f"init.checkpoint={folder}", "init.layers=[1, 2]"], base)
    with pytest.raises(
        SpecError,
        match=r"own.yaml:\d+:\d+: model.blocks: 1: not what .* layers 2 are: mixer.*window",
    ):
        with_depth(spec, stored, folder)


def test_layers_may_be_taken_twice_and_are_copies(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=41, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=19,
    )  # fmt: skip
    theirs = drawn(transformers.BertForMaskedLM(config))
    _, ours = student(saved(theirs, tmp_path / "theirs"), [0, 1, 0, 1])
    held = ours.state_dict()
    blocks = [{n[9:]: t for n, t in held.items() if n.startswith(f"blocks.{i}.")} for i in range(4)]
    for one, other in ((0, 2), (1, 3)):
        for name, tensor in blocks[one].items():
            assert torch.equal(tensor, blocks[other][name])
            assert tensor.data_ptr() != blocks[other][name].data_ptr()


def test_every_name_has_its_tensor(tmp_path: Path) -> None:
    """Streamed and glanced at, what is taken is what is copied."""
    config = transformers.BertConfig(
        vocab_size=41, hidden_size=24, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=19,
    )  # fmt: skip
    folder = saved(drawn(transformers.BertForMaskedLM(config)), tmp_path / "theirs")
    from bigmodel_cli.checkpoints import TakenLayers

    tensors = opening.read(folder).model
    found = TakenLayers(tensors, {"blocks": [2, 2, 0]})
    _, ours = student(folder, [2, 2, 0])
    streamed: dict[str, Tensor] = dict(found.stream())
    for name, tensor in ours.state_dict().items():
        if name in streamed:
            assert torch.equal(streamed[name], tensor)
            assert torch.equal(found.glance(name), tensor)
    assert {n for n in tensors if n.startswith("blocks.1.")} == set(found.left_out)
    assert load_weights(ours, found, spare=tensors.spare).loaded
