"""Vision Transformers of transformers, in and out: outputs equal, every number of every tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bigmodel_cli import checkpoints
from bigmodel_cli.assemble import assemble
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.exporting import express, folder_files
from bigmodel_cli.models import build
from bigmodel_cli.spec import from_dict

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.no_cover

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 9,
    "patch_size": 3, "layer_norm_eps": 1e-3, "num_labels": 5,
}  # fmt: skip
HEADED = {
    "vit": ("ViT", {"intermediate_size": 40, "num_channels": 2, "image_size": [6, 9]}),
    "dinov2": ("Dinov2", {"mlp_ratio": 3}),
    "dinov2, swiglu": ("Dinov2", {"mlp_ratio": 3, "use_swiglu_ffn": True}),
    "registers": ("Dinov2WithRegisters", {"num_register_tokens": 3, "mlp_ratio": 2}),
}


def drawn(model: Any) -> Any:
    """Every number drawn, norms, biases and scales too."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.3)
    return model.eval()


def published(folder: Path, name: str, kind: str = "ForImageClassification") -> Any:
    """A model of transformers, saved as its authors do."""
    prefix, options = HEADED[name]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **options})
    model = drawn(getattr(transformers, f"{prefix}{kind}")(config))
    model.save_pretrained(folder)
    return model


def processed(folder: Path, **changes: Any) -> None:
    values = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**values, **changes}))


def opened(folder: Path) -> tuple[Any, Any]:
    """Our model, and what the folder says."""
    contents = opening.read(folder)
    info = DatasetInfo.from_json(contents.info)
    described = opening.describe(folder)
    ours = build(described.model, info).eval()
    checkpoints.load_weights(ours, contents.model, fresh=() if described.task else ("head",))
    return ours, described


def exported(described: Any, ours: Any, task: str = "classification") -> dict[str, bytes]:
    """The files of the folder that is written."""
    found = express(described.model, described.info, task)
    files = folder_files(found, described.model, described.info, task, ours.state_dict())
    return {name: b"".join(bytes(piece) for piece in pieces) for name, pieces in files}


def near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", HEADED)
def test_classifiers_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = published(tmp_path, name)
    ours, described = opened(tmp_path)
    x = images(4, *described.info.image_shape)
    with torch.no_grad():
        near(ours(x), theirs(x).logits)
        with torch.autocast("cpu", torch.bfloat16):
            near(ours(x), theirs(x).logits, 1e-2)
    assert described.info.classes == tuple(f"LABEL_{i}" for i in range(5))


@pytest.mark.parametrize("name", HEADED)
def test_what_is_read_and_written_again_is_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    theirs = published(tmp_path / "theirs", name)
    ours, described = opened(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    for file, content in exported(described, ours).items():
        (tmp_path / "ours" / file).write_bytes(content)
    before, after = (
        load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours")
    )
    masks = {n for n in before if n.endswith("mask_token")}
    assert before.keys() - masks == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in after)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "ours").eval()
    assert again.config.id2label == theirs.config.id2label
    x = images(2, *described.info.image_shape)
    with torch.no_grad():
        near(again(x).logits, theirs(x).logits, 1e-6)


@pytest.mark.parametrize("name", HEADED)
def test_hidden_states_of_networks_without_a_head(name: str, tmp_path: Path) -> None:
    theirs = published(tmp_path, name, "Model")
    ours, described = opened(tmp_path)
    x = images(3, *described.info.image_shape)
    with torch.no_grad():
        want = theirs(x).last_hidden_state
        got = ours.features(ours.patch_vectors(x))
    near(got[:, 0], want[:, 0])
    near(got[:, 1:], want[:, 1 - len(got[0]) :])  # registers are not given back
    assert described.spec()["task"] == {"type": "classification"}


def test_the_normalisation_is_that_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published(tmp_path, "dinov2")
    assert opening.describe(tmp_path).info.mean == ()
    opening.read(tmp_path)
    assert "no preprocessor_config.json; the pixels are taken in 0..1" in capsys.readouterr().err
    processed(tmp_path, size={"height": 4, "width": 4})
    described = opening.describe(tmp_path)
    opening.read(tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "mean 0.5, 0.4, 0.3; deviation 0.2, 0.3, 0.4, as the weights were trained" in said
    assert "makes images of 4 x 4, and the weights have positions for 9 x 9" in said
    assert (described.info.mean, described.info.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert described.spec()["data"]["normalize"]["mean"] == [0.5, 0.4, 0.3]


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
    assert "newly initialised, since the classes differ: head.weight, head.bias" in said
    x = images(2, 3, 15, 15)
    with torch.no_grad():
        near(ours.features(ours.patch_vectors(x)), theirs(x).last_hidden_state)
