"""Vision Transformers of transformers and timm: outputs equal, every number of every tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published import drawn, off, read, saved, tensors, written
from torch import Tensor

from bigmodel_cli.assemble import assemble
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.exporting import express, folder_files
from bigmodel_cli.convert.families import TIMM
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.spec import from_dict

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 9,
    "patch_size": 3, "layer_norm_eps": 1e-3, "num_labels": 5,
}  # fmt: skip
OBLONG: dict[str, Any] = {"intermediate_size": 40, "num_channels": 1, "image_size": [6, 9]}
HEADED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", OBLONG),
    "vit, no biases": ("ViT", {**OBLONG, "qkv_bias": False}),
    "dinov2": ("Dinov2", {"mlp_ratio": 3}),
    "dinov2, swiglu": ("Dinov2", {"mlp_ratio": 3, "use_swiglu_ffn": True}),
    "registers": ("Dinov2WithRegisters", {"num_register_tokens": 3, "mlp_ratio": 2}),
}
AXIAL = {"intermediate_size": 40, "image_size": [6, 9], "num_register_tokens": 2}
BODIES = {
    **HEADED,
    "dinov3": ("DINOv3ViT", AXIAL),
    "dinov3, gated": (
        "DINOv3ViT",
        {
            **AXIAL, "use_gated_mlp": True, "hidden_act": "silu", "key_bias": True,
            "query_bias": False, "mlp_bias": False, "rope_theta": 30.0, "num_register_tokens": 0,
        },
    ),
}  # fmt: skip


def published(folder: Path, name: str, kind: str = "ForImageClassification") -> Any:
    """A model of transformers, saved as its authors do."""
    prefix, options = BODIES[name]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **options})
    model = drawn(getattr(transformers, f"{prefix}{kind}")(config), 0.2)
    saved(model, folder)
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", HEADED)
def test_classifiers_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs", name)
    ours, info = read(tmp_path / "theirs")
    assert info.classes == tuple(f"LABEL_{i}" for i in range(5))
    assert info.image_shape is not None
    x = images(4, *info.image_shape)
    out = written(tmp_path / "theirs", ours, tmp_path / "ours")
    again = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    with torch.no_grad():
        assert off(ours(x), theirs(x).logits) < 1e-5
        assert off(again(x).logits, theirs(x).logits) < 1e-6
        with torch.autocast("cpu", torch.bfloat16):
            assert off(ours(x), theirs(x).logits) < 1e-2
    assert again.config.id2label == theirs.config.id2label
    before, after = tensors(tmp_path / "theirs"), tensors(out)
    assert {n for n in before if not n.endswith("mask_token")} == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in after)


@pytest.mark.parametrize("name", BODIES)
def test_hidden_states_of_networks_without_a_head(name: str, tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs", name, "Model")
    ours, info = read(tmp_path / "theirs")
    assert info.image_shape is not None
    x = images(3, *info.image_shape)
    with torch.no_grad():
        want = theirs(x).last_hidden_state
        got = ours.features(ours.patch_vectors(x))
    assert off(got[:, 0], want[:, 0]) < 1e-5
    assert off(got[:, 1:], want[:, 1 - len(got[0]) :]) < 1e-5  # registers are not given back
    assert opening.read_spec(tmp_path / "theirs")["task"] == {"type": "classification"}
    if name.startswith("dinov3"):  # no class of transformers has a head for it
        out = written(tmp_path / "theirs", ours, tmp_path / "ours")
        before, after = tensors(tmp_path / "theirs"), tensors(out)
        lost = {n for n in before if before[n].numel() and not n.endswith("mask_token")}
        assert lost == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in after)


def test_the_normalisation_is_that_of_the_folder(tmp_path: Path) -> None:
    published(tmp_path, "dinov2")
    assert opening.describe(tmp_path).info.mean == ()
    said = "; ".join(opening.read(tmp_path).notes)
    assert "no preprocessor_config.json, which would say how images are normalised" in said
    values = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": {"height": 4}}
    values["size"] = {"height": 4, "width": 4}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    described = opening.describe(tmp_path)
    said = "; ".join(opening.read(tmp_path).notes)
    assert "mean 0.5, 0.4, 0.3; deviation 0.2, 0.3, 0.4, as the weights were trained" in said
    assert "makes images of 4 x 4, and the weights have positions for 9 x 9" in said
    assert (described.info.mean, described.info.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert opening.read_spec(tmp_path)["data"]["normalize"]["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"hidden_act": "relu"}, "hidden_act: 'relu' is not built"),
        (
            "config.json",
            {"num_channels": 2},
            "images of 2 channels, and those read",
        ),
        ("config.json", {"patch_size": [3, 2]}, "patch_size: 3 x 2; only squares are built"),
        ("config.json", {"image_size": "9"}, "image_size: '9' is not one or two sides"),
        ("config.json", {"patch_bias": False}, "patch_bias: not known for this family"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "only pixels scaled to 0..1"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, "not 1 numbers each"),
        ("preprocessor_config.json", {"image_mean": "x"}, "not 1 numbers each"),
    ],
)
def test_what_is_not_built_is_refused(
    file: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    published(tmp_path, "vit")
    values = {"image_mean": [0.5], "image_std": [0.5]}
    path = tmp_path / file
    path.write_text(
        json.dumps({**(json.loads(path.read_text()) if path.exists() else values), **changes})
    )
    with pytest.raises(CheckpointError, match=message):
        opening.describe(tmp_path)


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """ImageNet has two kinds of crane, and published labels name them alike."""
    published(tmp_path, "vit")
    path = tmp_path / "config.json"
    names = {"0": "crane", "1": "wren", "2": "crane", "3": "a", "4": "b"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": names}))
    described = opening.describe(tmp_path)
    assert described.info.classes == ("crane (0)", "wren", "crane (2)", "a", "b")
    assert "id2label names classes alike (crane)" in " ".join(described.notes)


def test_positions_are_interpolated_for_images_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers' DINOv2 does at each call."""
    theirs = published(tmp_path, "dinov2", "Model")
    spec = from_dict(opening.read_spec(tmp_path))
    info = DatasetInfo(image_shape=(3, 15, 15), classes=("a", "b"))
    ours: Any = assemble(spec, info, torch.device("cpu"), tmp_path).eval()
    said = " ".join(capsys.readouterr().err.split())
    assert "positions interpolated (bicubic), from images of 9 x 9 to 15 x 15: table" in said
    assert "newly initialised, since the checkpoint has no head: head.weight, head.bias" in said
    x = images(2, 3, 15, 15)
    with torch.no_grad():
        assert off(ours.features(ours.patch_vectors(x)), theirs(x).last_hidden_state) < 1e-5


PLAIN = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.5}
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {"img_size": (12, 8), "patch_size": 4, "in_chans": 1}),
    "scaled": ("vit_small_patch14_dinov2", {"img_size": 28, "num_classes": 3}),
    "no biases": ("deit_small_patch16_224", {"img_size": 32, "qkv_bias": False}),
    "body": ("vit_base_patch32_224", {"img_size": 64, "num_classes": 0, "init_values": 0.1}),
}


def in_timm(folder: Path, name: str, **options: Any) -> Any:
    timm = pytest.importorskip("timm")
    from timm.models._hub import save_for_hf

    model = drawn(timm.create_model(name, **options))
    names = [f"class {i}" for i in range(model.num_classes)]
    save_for_hf(model, folder, safe_serialization=True, model_config={"label_names": names})
    return model


def same_in_timm(folder: Path, theirs: Any, x: Tensor) -> None:
    """What we read computes the same, and what we write opens in timm and does too."""
    timm = pytest.importorskip("timm")
    ours, info = read(folder)
    described = opening.describe(folder)
    found = express(described.model, info, described.task, families=TIMM)
    out = folder.parent / "ours"
    out.mkdir()
    files = folder_files(found, described.model, info, described.task, ours.state_dict())
    for name, pieces in files:
        (out / name).write_bytes(b"".join(bytes(piece) for piece in pieces))
    before, after = tensors(folder), tensors(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in after)
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        if described.task:
            assert off(ours(x), theirs(x)) < 1e-5
            assert info.classes == tuple(f"class {i}" for i in range(info.outputs))
        else:
            assert off(ours.features(ours.patch_vectors(x)), theirs.forward_features(x)) < 1e-5
        assert off(again(x), theirs(x)) < 1e-6


@pytest.mark.parametrize("name", VITS)
def test_vision_transformers_of_timm(name: str, tmp_path: Path) -> None:
    architecture, options = VITS[name]
    theirs = in_timm(tmp_path / "theirs", architecture, **{**PLAIN, "num_classes": 4, **options})
    info = opening.describe(tmp_path / "theirs").info
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert info.mean == tuple(values["pretrained_cfg"]["mean"])
    assert info.image_shape is not None
    same_in_timm(tmp_path / "theirs", theirs, images(3, *info.image_shape))


def test_a_resnet_of_timm_is_torchvisions(tmp_path: Path) -> None:
    theirs = in_timm(tmp_path / "theirs", "resnet18", num_classes=4)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
    theirs.eval()
    in_file = tmp_path / "theirs" / "model.safetensors"
    from safetensors.torch import save_file

    save_file(theirs.state_dict(), in_file)
    same_in_timm(tmp_path / "theirs", theirs, images(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "convnext_tiny"}, "architecture: 'convnext_tiny' of timm is not read"),
        ({"architecture": "resnet18d"}, "architecture: 'resnet18d' of timm is not read"),
        ({"global_pool": "avg"}, "global_pool: 'avg' is not built"),
        ({"model_args": {"reg_tokens": 4}}, "model_args: reg_tokens: '4' is not built"),
        ({"model_args": {"act_layer": "relu"}}, "model_args: act_layer: not known"),
        ({"label_names": ["a", "a"]}, "label_names: not 4 different names"),
        ({"pretrained_cfg": {}}, "input_size: not three sizes"),
    ],
)
def test_other_networks_of_timm_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 4,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(CheckpointError, match=message):
        opening.describe(tmp_path)


def test_a_vit_that_no_class_has_is_not_written(tmp_path: Path) -> None:
    published(tmp_path, "vit")
    described = opening.describe(tmp_path)
    values = described.model.model_dump()
    values["registers"] = 2
    with pytest.raises(SpecError, match=r"no published family has this model.*model\.registers"):
        express(opening.typed(values), described.info, "classification")
