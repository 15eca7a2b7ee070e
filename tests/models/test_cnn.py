"""Convolutional networks written in YAML equal the same networks written in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import build
from bigmodel_cli.models.cnn import CNNOptions
from bigmodel_cli.models.describe import describe, flops, training_flops
from bigmodel_cli.models.torchvision import TorchvisionOptions
from bigmodel_cli.spec import load

DIGITS = DatasetInfo(image_shape=(1, 28, 28), classes=tuple("0123456789"))
COLOUR = DatasetInfo(image_shape=(3, 224, 224), classes=tuple(f"c{i}" for i in range(1000)))


def cnn(layers: list[dict[str, Any]], info: DatasetInfo = DIGITS) -> nn.Module:
    return build(CNNOptions.model_validate({"type": "cnn", "layers": layers}), info)


def test_the_mnist_network() -> None:
    model = build(load(ROOT / "sample_configs" / "mnist_cnn.yaml").model, DIGITS)
    reference = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    reference.load_state_dict(
        dict(zip(reference.state_dict(), model.state_dict().values(), strict=True))
    )
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(model(x), reference(x))
    assert sum(p.numel() for p in model.parameters()) == 93_322
    assert flops(model, x[:1]) == 2 * (
        26 * 26 * 32 * 9 + 11 * 11 * 64 * 288 + 3 * 3 * 64 * 576 + 576 * 64 + 640
    )
    shapes = {layer.path: layer.shape for layer in describe(model, x[:1])}
    assert shapes["layers.0"] == (1, 32, 26, 26)
    assert shapes["layers.6"] == (1, 64)


def test_a_training_step_computes_the_gradients_that_are_wanted() -> None:
    """Of each product that of its weights and of its input, from the first trained weight on; no
    more of what is frozen.
    """
    layers = [
        {"type": "conv", "channels": 8},
        {"type": "conv", "channels": 8, "groups": 8, "stride": 2},
        {"type": "flatten"},
        {"type": "dense", "units": "classes"},
    ]
    model = cnn(layers).to("meta")
    # of five images
    costs = [
        2 * 5 * 26 * 26 * 8 * 9,
        2 * 5 * 12 * 12 * 8 * 9,
        2 * 5 * 12 * 12 * 8 * 10,
    ]
    x = torch.zeros(5, 1, 28, 28, device="meta")
    assert flops(model, x) == sum(costs)
    assert training_flops(model, x) == 3 * sum(costs) - costs[0]  # the image needs no gradient
    for parameter in model.layers[0].parameters():  # type: ignore[index, union-attr]
        parameter.requires_grad_(False)
    assert training_flops(model, x) == 3 * sum(costs) - 2 * costs[0] - costs[1]
    for parameter in model.layers[1].parameters():  # type: ignore[index, union-attr]
        parameter.requires_grad_(False)
    assert training_flops(model, x) == sum(costs) + costs[2]


def test_the_best_spec_keeps_to_the_budget() -> None:
    model = build(load(ROOT / "sample_configs" / "mnist_cnn_best.yaml").model, DIGITS)
    assert sum(p.numel() for p in model.parameters()) <= 93_322


def test_alexnet_equals_torchvisions() -> None:
    import torchvision

    ours = build(load(ROOT / "sample_configs" / "alexnet.yaml").model, COLOUR).eval()
    theirs = torchvision.models.alexnet().eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(ours(x), theirs(x))
    assert sum(p.numel() for p in ours.parameters()) == 61_100_840


def test_residual_batch_norm_groups_and_same_padding() -> None:
    inner = [{"type": "conv", "channels": 8, "kernel": 3, "stride": 2, "padding": 1,
     "norm": "batch"},
             {"type": "conv", "channels": 8, "padding": "same", "groups": 4,
              "activation": "none"}]  # fmt: skip
    model = cnn(
        [{"type": "residual", "layers": inner}, {"type": "adaptive_pool"}, {"type": "flatten"},
         {"type": "dropout"},
         {"type": "dense", "units": "classes", "activation": "none"}]
    ).eval()  # fmt: skip
    x = torch.randn(2, 1, 28, 28)
    block: Any = model.layers[0]  # type: ignore[index]
    branch = block.layers[1](torch.relu(block.layers[0].norm(block.layers[0].conv(x))))
    torch.testing.assert_close(block(x), torch.relu(block.shortcut(x) + branch))
    assert block(x).shape == (2, 8, 14, 14)
    model(x).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{"type": "conv", "channels": 4, "kernel": 40}],
         "model.layers.0.kernel: 40 is larger than its input of 28 x 28"),
        ([{"type": "dense", "units": 10}],
         "model.layers.0: its input is an image of 1 x 28 x 28 .*put a flatten layer"),
        ([{"type": "flatten"}, {"type": "pool"}], "model.layers.1: a pool layer reads an image"),
        ([{"type": "flatten"}, {"type": "dense", "units": 9}],
         "ends with 9 values, and the data has 10 classes"),
        ([{"type": "conv", "channels": 3, "groups": 2}],
         "model.layers.0.groups: 2 does not divide 1 input"),
        ([{"type": "conv", "channels": 3, "padding": "same", "stride": 2}],
         "model.layers.0.padding: same needs stride 1"),
        ([{"type": "pool", "padding": 2}], "model.layers.0.padding: 2 is more than half"),
        ([{"type": "residual", "layers": [{"type": "conv", "channels": 2, "kernel": 40}]}],
         "model.layers.0.layers.0.kernel: 40 is larger"),
        ([{"type": "residual", "layers": [{"type": "conv", "channels": 2}]}],
         "cannot be added to the input"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_named(layers: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        cnn(layers)


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t", "googlenet"]
)
def test_networks_of_torchvision_by_name(name: str) -> None:
    import torchvision

    info = DatasetInfo(image_shape=(3, 64, 64), classes=("a", "b", "c"))
    with torch.device("meta"):
        model = build(TorchvisionOptions(name=name), info)
        keywords = {"image_size": 64} if name.startswith("vit") else {}
        if name == "googlenet":
            keywords = {"aux_logits": False, "init_weights": False}
        theirs = torchvision.models.get_model(name, num_classes=3, **keywords)
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 3)
    (head,) = model.output_layers()
    assert any(n.startswith(head) and t.shape[0] == 3 for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "info", "message"),
    [
        (
            TorchvisionOptions(name="resnet81"),
            COLOUR,
            "no classification network 'resnet81'; did you mean resnet18",
        ),
        (
            TorchvisionOptions(name="resnet18"),
            DIGITS,
            "read 3 channels, and the data has 1; set data.channels: 3",
        ),
        (
            TorchvisionOptions(name="resnet18", weights="IMAGENET1K_V9"),
            COLOUR,
            "not 'IMAGENET1K_V9'; did you mean IMAGENET",
        ),
        (
            TorchvisionOptions(name="vit_b_16"),
            DatasetInfo(image_shape=(3, 64, 32), classes=("a",)),
            "reads square images",
        ),
        (TorchvisionOptions(name="resnet18"), DatasetInfo(vocab_size=3), "reads labelled images"),
    ],
)
def test_torchvision_options_that_do_not_fit_are_refused(
    options: TorchvisionOptions, info: DatasetInfo, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        build(options, info)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "vit_b_32"])
def test_logits_of_torchvisions_networks_are_theirs(name: str) -> None:
    import torchvision

    model = build(
        TorchvisionOptions(name=name), DatasetInfo(image_shape=(3, 64, 64), classes=("a", "b", "c"))
    ).eval()
    keywords: dict[str, Any] = {"image_size": 64} if name.startswith("vit") else {}
    if name == "googlenet":
        keywords = {"aux_logits": False, "init_weights": False}
    theirs = torchvision.models.get_model(name, num_classes=3, **keywords).eval()
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), theirs(x))


@pytest.mark.parametrize(("wide", "stride"), [(8, 2), (6, 1)])
def test_a_residual_network_written_in_yaml_equals_torchvisions_block(
    wide: int, stride: int
) -> None:
    from torchvision.models.resnet import BasicBlock

    conv: dict[str, Any] = {
        "type": "conv",
        "channels": wide,
        "kernel": 3,
        "padding": 1,
        "norm": "batch",
    }
    inner = [{**conv, "stride": stride}, {**conv, "activation": "none"}]
    tail = [{"type": "adaptive_pool"}, {"type": "flatten"}, {"type": "dense", "units": "classes"}]
    first = {**conv, "channels": 6}
    ours: Any = cnn([first, {"type": "residual", "layers": inner}, *tail])
    for p in ours.parameters():
        nn.init.normal_(p, 0.0, 0.4)
    same = stride == 1 and wide == 6
    shortcut = (
        None
        if same
        else nn.Sequential(nn.Conv2d(6, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
    )
    theirs = BasicBlock(6, wide, stride, shortcut)
    branch = [
        ours.layers[1].layers[0].conv,
        ours.layers[1].layers[0].norm,
        ours.layers[1].layers[1].conv,
        ours.layers[1].layers[1].norm,
    ]
    for mine, other in zip(
        branch, (theirs.conv1, theirs.bn1, theirs.conv2, theirs.bn2), strict=True
    ):
        other.load_state_dict(mine.state_dict())
    if shortcut is not None:
        shortcut[0].load_state_dict(ours.layers[1].shortcut.conv.state_dict())
        shortcut[1].load_state_dict(ours.layers[1].shortcut.norm.state_dict())
    x = torch.randn(3, 1, 28, 28)
    start = ours.layers[0]
    maps = theirs(torch.relu(start.norm(start.conv(x))))
    want = maps.mean((2, 3)) @ ours.layers[4].dense.weight.T + ours.layers[4].dense.bias
    torch.testing.assert_close(ours(x), want, atol=1e-4, rtol=1e-4)
