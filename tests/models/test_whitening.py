"""A first layer that whitens patches, identity starts, alternating flips, mirrored answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from safetensors.torch import load_file

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.image.augment import Augmentation, RandomCropOptions, RandomFlipOptions
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import build
from bigmodel_cli.models.cnn import CNNOptions
from bigmodel_cli.tasks.classification import ClassificationOptions

Cli = Callable[..., Result]
WHITEN = {"type": "whiten", "kernel": 3, "eps": 1e-3, "activation": "none"}
INFO = DatasetInfo(image_shape=(2, 9, 7), classes=("a", "b", "c"))
SPEC = """
model:
  type: cnn
  layers:
    - {type: whiten, kernel: 2}
    - {type: conv, channels: 20, padding: 1, bias: false, activation: none, start: identity}
    - {type: pool}
    - {type: norm, activation: gelu}
    - {type: flatten}
    - {type: dense, units: classes}
data:
  type: digits
  augment: [{type: RandomCrop, padding: 1, fill: mirror},
            {type: RandomHorizontalFlip, alternate: true}]
task: {type: classification, mirrored: true}
train: {steps: 3, batch_size: 40, validate_every: 3, precision: fp32,
        optimizer: {type: muon, lr: 0.05}}
"""


def cnn(*layers: dict[str, Any], info: DatasetInfo = INFO) -> Any:
    rest = [{"type": "flatten"}, {"type": "dense", "units": "classes"}]
    return build(CNNOptions.model_validate({"type": "cnn", "layers": [*layers, *rest]}), info)


def patches(images: np.ndarray[Any, Any], kernel: int) -> np.ndarray[Any, Any]:
    """(patches, values) in the order of a convolution's weights, cut out one by one."""
    count, _, height, width = images.shape
    return np.stack([
        images[i, :, y : y + kernel, x : x + kernel].ravel()
        for i in range(count)
        for y in range(height - kernel + 1)
        for x in range(width - kernel + 1)
    ])  # fmt: skip


def test_patches_are_whitened_with_both_signs() -> None:
    torch.manual_seed(5)
    model = cnn(WHITEN)
    mixed = torch.einsum("ij,bjhw->bihw", torch.tensor([[1.0, 0.4], [-2.0, 1.5]]),
                         torch.randn(11, 2, 9, 7))  # fmt: skip
    images = mixed + mixed.roll(1, -1) + 0.3
    model.learn_before({"image": images})
    assert model.training
    y = model.layers[0](images).detach().numpy()
    np.testing.assert_array_equal(y[:, 18:], -y[:, :18])
    flat = y[:, :18].transpose(0, 2, 3, 1).reshape(-1, 18).astype(np.float64)
    cut = patches(images.numpy().astype(np.float64), 3)
    variances = np.linalg.eigvalsh(cut.T @ cut / len(cut))[::-1]
    np.testing.assert_allclose(
        flat.T @ flat / len(flat), np.diag(variances / (variances + 1e-3)), atol=2e-5
    )
    assert [name for name, _ in model.layers[0].named_parameters()] == ["whiten.bias"]


def test_a_later_layer_is_whitened_too_and_norms_stay() -> None:
    model = cnn({"type": "norm"}, {"type": "whiten", "kernel": 1, "activation": "none"}, WHITEN)
    images = torch.randn(40, 2, 9, 7) * 3 + 1
    model.learn_before({"image": images})
    assert float(model.layers[0].norm.running_mean.abs().max()) == 0
    model.eval()
    x = model.layers[1](model.layers[0](images)).detach()
    y = model.layers[2](x)[:, :36].permute(0, 2, 3, 1).flatten(0, 2).double()
    moment = (y.T @ y / len(y)).diag()
    known = x.shape[1] * 9 // 2  # the other half of its values are the same with another sign
    assert bool(((moment[:known] - 1).abs() < 0.01).all())


def test_convolutions_start_as_the_identity() -> None:
    model = cnn(
        {"type": "conv", "channels": 5, "kernel": 5, "padding": 2, "activation": "none",
         "bias": False, "start": "identity"}
    )  # fmt: skip
    x = torch.randn(3, 2, 9, 7)
    y = model.layers[0](x)
    torch.testing.assert_close(y[:, :2], x, atol=0, rtol=0)
    assert float(y[:, 2:].detach().abs().min()) > 0
    fewer = cnn({"type": "conv", "channels": 1, "start": "identity", "activation": "none"})
    torch.testing.assert_close(
        fewer.layers[0](x) - fewer.layers[0].conv.bias.view(1, 1, 1, 1), x[:, :1, 1:-1, 1:-1]
    )
    with pytest.raises(SpecError, match="start: identity needs an odd kernel"):
        cnn({"type": "conv", "channels": 5, "kernel": 2, "start": "identity"})


def test_flips_alternate_from_epoch_to_epoch_by_sample() -> None:
    images, samples = torch.rand(60, 1, 3, 5), np.arange(1000, 1060)
    change = Augmentation([RandomFlipOptions(alternate=True)])
    first, second = (change(images, samples, epoch, 7) for epoch in (0, 1))
    turned = [bool(torch.equal(x, y.flip(-1))) for x, y in zip(first, images, strict=True)]
    assert 15 < sum(turned) < 45
    torch.testing.assert_close(second, first.flip(-1), atol=0, rtol=0)
    for epoch, same in ((2, first), (7, second)):
        assert torch.equal(change(images, samples, epoch, 7), same)
    assert torch.equal(change(images[9:10], samples[9:10], 1, 7), second[9:10])
    assert not torch.equal(change(images, samples, 0, 8), first)
    with pytest.raises(ValueError, match="leave p out"):
        RandomFlipOptions(alternate=True, p=0.3)


def test_crops_of_mirrored_edges() -> None:
    images = torch.rand(4, 3, 5, 6)
    u = torch.tensor([[0.0, 0.99], [0.5, 0.2], [0.99, 0.0], [0.3, 0.7]])
    cropped = RandomCropOptions(padding=3, fill="mirror").apply(images, u)
    edges = ((0, 0), (0, 0), (3, 3), (3, 3))
    padded = np.pad(images.numpy(), edges, mode="reflect")
    for i, (top, left) in enumerate((int(7 * float(a)), int(7 * float(b))) for a, b in u):
        np.testing.assert_array_equal(
            cropped[i].numpy(), padded[i, :, top : top + 5, left : left + 6]
        )
    with pytest.raises(SpecError, match="5 pixels cannot be mirrored"):
        RandomCropOptions(padding=5, fill="mirror").apply(images, u)


def test_answers_are_the_mean_of_both_sides() -> None:
    model = cnn({"type": "conv", "channels": 4}).eval()
    task = ClassificationOptions(mirrored=True).build(INFO)
    x = torch.randn(6, 2, 9, 7)
    batch = {"image": x, "label": torch.zeros(6, dtype=torch.long)}
    turned = torch.from_numpy(x.numpy()[..., ::-1].copy())
    torch.testing.assert_close(
        task.forward(model, batch, training=False), (model(x) + model(turned)) / 2
    )
    torch.testing.assert_close(task.forward(model, batch), model(x))
    words = DatasetInfo(vocab_size=30, classes=("a", "b"))
    with pytest.raises(SpecError, match=r"task\.mirrored: the data has no images"):
        ClassificationOptions(mirrored=True).build(words)


def test_the_axes_are_kept_resumed_and_taken_along(cli: Cli, tmp_path: Path) -> None:
    spec, whole = tmp_path / "spec.yaml", tmp_path / "whole"
    spec.write_text(SPEC)
    assert cli("pretrain", spec, "--out", whole).status == 0
    name = "layers.0.whiten.weight"
    axes = load_file(whole / "checkpoints" / "last" / "model.safetensors")
    assert float((axes[name] - torch.eye(4).repeat(2, 1).view(8, 1, 2, 2)).abs().max()) > 0.1

    part = tmp_path / "part"
    assert cli("pretrain", spec, "--out", part, "--set", "train.steps=2").status == 0
    assert cli("pretrain", spec, "--resume", "--out", part).status == 0
    again = load_file(part / "checkpoints" / "last" / "model.safetensors")
    torch.testing.assert_close(again[name], axes[name], atol=0, rtol=0)

    tuned = tmp_path / "tuned"
    other = ["--set", "data.label_fraction=0.3", "--set", "train.seed=9"]
    assert cli("finetune", "--from", whole, spec, "--out", tuned, *other).status == 0
    after = load_file(tuned / "checkpoints" / "last" / "model.safetensors")
    torch.testing.assert_close(after[name], axes[name], atol=0, rtol=0)
    found = cli("eval", whole, "--json")
    assert found.status == 0
    assert "accuracy" in json.dumps(json.loads(found.out))


@pytest.mark.parametrize("mirrored", [True, False])
def test_who_gets_the_model_alone_is_told_what_evaluation_adds(
    mirrored: bool, cli: Cli, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.replace("mirrored: true", f"mirrored: {str(mirrored).lower()}"))
    assert cli("pretrain", spec, "--out", tmp_path / "run", "--set", "train.steps=1").status == 0
    told = cli("export", tmp_path / "run", "--to", "onnx", tmp_path / "out")
    assert told.status == 0, told.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("mean of the logits of each image" in told.err) is mirrored
    assert ("mean of the logits of each image" in card) is mirrored


def test_axes_of_a_checkpoint_stay_and_a_new_layer_learns_its_own() -> None:
    torch.manual_seed(5)
    model = cnn(WHITEN, {**WHITEN, "kernel": 2})
    first, second = (m for m in model.modules() if hasattr(m, "learnt"))
    first.learn(torch.randn(6, 2, 9, 7))
    before = first.weight.clone()
    assert first.learnt()
    assert not second.learnt()
    model.learn_before({"image": torch.randn(4, 2, 9, 7)})
    assert torch.equal(first.weight, before)
    assert second.learnt()
