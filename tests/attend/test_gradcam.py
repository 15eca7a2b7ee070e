"""Grad-CAM: of the map that enters the last pooling, for every network that labels images, by its
formula.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import Result
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.models.regnet import BlockParams

from bigmodel_cli.attend.gradcam import grad_cam
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import build
from bigmodel_cli.models.cnn import CNNOptions
from bigmodel_cli.models.torchvision import TorchvisionOptions

NAMES = torchvision.models.list_models(module=torchvision.models)
CLASSES = ("a", "b", "c")
SMALLEST = {
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf",
    "resnet18", "resnet50",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t",
    "swin_v2_t", "vgg11", "vgg11_bn",
    "wide_resnet50_2",
}  # fmt: skip
"""One of each kind; the larger ones of its kind are looked at in a slow test."""
ALL = [
    n if n in SMALLEST else pytest.param(n, marks=pytest.mark.slow)
    for n in NAMES
    if not n.startswith("vit_")
]
POOLINGS = (F.adaptive_avg_pool2d, Tensor.mean, torch.mean)


class LastPooling(TorchFunctionMode):
    """Watches every operation of a forward pass: `entered` is what the last pooling over height and
    width was given.
    """

    entered: Tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func in POOLINGS
            and args[0].dim() == 4
            and (func not in POOLINGS[1:] or list(args[1]) == [2, 3])
        ):
            self.entered = args[0]
        return func(*args, **(kwargs or {}))


def network(name: str, side: int) -> Any:
    torch.manual_seed(0)
    info = DatasetInfo(image_shape=(3, side, side), classes=CLASSES)
    return build(TorchvisionOptions(name=name), info).eval()


@pytest.fixture
def shapes_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks are built on the meta device, without first weights, where the largest takes no
    memory.
    """
    for name in (
        "constant_",
        "kaiming_normal_",
        "kaiming_uniform_",
        "normal_",
        "trunc_normal_",
        "uniform_",
        "xavier_uniform_",
    ):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    widths = BlockParams.from_init_params

    def on_cpu(
        *args: Any, **kwargs: Any
    ) -> BlockParams:  # RegNet's widths are numbers that it works out with tensors
        with torch.device("cpu"):
            return widths(*args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", on_cpu)
    with torch.device("meta"), torch.no_grad():
        yield


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("name", ALL)
def test_the_map_is_what_enters_the_last_pooling(name: str) -> None:
    """The same tensor, not one like it."""
    model = network(name, 224)
    kept: list[Tensor] = []
    model.last_feature_layer().register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    with LastPooling() as pooling:
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 3)
    assert kept[-1] is pooling.entered
    assert min(kept[-1].shape[2:]) >= 5


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("vit_")])
def test_networks_without_a_feature_map_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"Grad-CAM needs a map .* {name} has none"):
        network(name, 224).last_feature_layer()


def by_formula(model: Any, image: Tensor, features: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Selvaraju et al. 2017, equations 1 and 2, for the likeliest class: channel by channel."""
    logits = model(image.clone().requires_grad_())[0]
    best = max(range(len(logits)), key=lambda c: float(logits[c]))
    maps = features()
    slopes = torch.autograd.grad(logits[best], maps)[0]
    total = torch.zeros(maps.shape[2:])
    for k in range(maps.shape[1]):
        total = total + slopes[0, k].mean() * maps[0, k].detach()
    return total.clamp(min=0), best


SMALL = {
    "alexnet": 127, "squeezenet1_1": 65, "googlenet": 96, "inception_v3": 139, "mobilenet_v2": 70,
    "mobilenet_v3_small": 96, "mnasnet0_5": 96, "shufflenet_v2_x0_5": 70, "efficientnet_b0": 96,
    "resnet18": 96, "resnet50": 65,
    "regnet_y_400mf": 96, "densenet121": 96, "convnext_tiny": 96, "swin_t": 96, "swin_v2_t": 65,
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_grad_cam_of_torchvisions_networks_equals_its_formula(name: str) -> None:
    side = SMALL[name]
    model = network(name, side)
    coarse, best, image = torch.zeros(1), 0, torch.zeros(1)
    for seed in range(20):  # until the map speaks for the likeliest class anywhere
        torch.manual_seed(seed)
        # statistics that make normalisation and its in-place neighbours count
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.2)
            for p in list(model.parameters())[-2:]:
                p.normal_(0, 0.1)
        image = torch.randn(1, 3, side, side)
        with LastPooling() as pooling:
            coarse, best = by_formula(model, image, lambda watched=pooling: watched.entered)
        if bool(coarse.any()):
            break
    got = grad_cam(model, image, DatasetInfo(image_shape=(3, side, side), classes=CLASSES))
    assert got.size == tuple(coarse.shape)
    assert got.label == CLASSES[best]
    assert got.heat is not None
    assert bool(coarse.any())
    want = F.interpolate(
        coarse[None, None], size=(side, side), mode="bilinear", align_corners=False
    )[0, 0]
    torch.testing.assert_close(got.heat, want / want.max(), atol=2e-4, rtol=0)


def cnn(layers: list[dict[str, Any]], shape: tuple[int, int, int]) -> Any:
    torch.manual_seed(0)
    return build(
        CNNOptions.model_validate({"layers": layers}),
        DatasetInfo(image_shape=shape, classes=CLASSES),
    ).eval()


CONV = {"type": "conv", "channels": 5, "kernel": 3, "norm": "batch"}
TAIL = [{"type": "flatten"}, {"type": "dense", "units": "classes"}]
NETWORKS: dict[str, tuple[list[dict[str, Any]], int]] = {  # layers, and which of them gives the map
    "residual and global pooling": (
        [
            CONV,
            {
                "type": "residual",
                "layers": [{**CONV, "padding": 1}, {**CONV, "padding": 1, "activation": "none"}],
            },
            {"type": "dropout"},
            {"type": "adaptive_pool"},
            *TAIL,
        ],
        1,
    ),
    "pooled and flattened": (
        [CONV, {"type": "pool"}, {**CONV, "activation": "silu"}, {"type": "pool"}, *TAIL],
        2,
    ),
    "LeNet, whose last convolution sees all": (
        [
            CONV,
            {"type": "pool"},
            {**CONV, "stride": 2},
            {**CONV, "kernel": 4, "norm": "none"},
            *TAIL,
        ],
        2,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 20, 21), (3, 20, 20)])
def test_grad_cam_of_our_networks_equals_its_formula(
    name: str, shape: tuple[int, int, int]
) -> None:
    """Those of pictures, and of sound, whose images are frames (wider than high, one channel)."""
    layers, which = NETWORKS[name]
    model, image = cnn(layers, shape), torch.randn(1, *shape)
    kept: list[Tensor] = []
    model.layers[which].register_forward_hook(lambda module, inputs, output: kept.append(output))
    coarse, best = by_formula(model, image, lambda: kept[-1])
    got = grad_cam(model, image, DatasetInfo(image_shape=shape, classes=CLASSES))
    assert (got.label, got.size) == (CLASSES[best], tuple(coarse.shape))
    assert got.heat is not None
    want = F.interpolate(coarse[None, None], size=shape[1:], mode="bilinear", align_corners=False)[
        0, 0
    ]
    torch.testing.assert_close(got.heat, want / want.max().clamp(min=1e-12), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5", "densenet121"])
def test_a_map_of_one_value_is_reported(name: str) -> None:
    image = torch.randn(1, 3, 32, 32)
    got = grad_cam(network(name, 32), image, DatasetInfo(image_shape=(3, 32, 32), classes=CLASSES))
    assert got.heat is None
    assert got.size == (1, 1)
    assert "1 x 1 for images of 32 x 32" in got.to_json()["note"]


def test_a_map_that_is_zero_everywhere_is_reported() -> None:
    model = cnn([{**CONV, "norm": "none"}, {"type": "adaptive_pool"}, *TAIL], (1, 6, 6))
    with torch.no_grad():
        model.layers[0].conv.bias.fill_(5.0)
        model.layers[3].dense.weight.copy_(-torch.arange(1.0, 4)[:, None].expand(3, 5))
    got = grad_cam(
        model, torch.randn(1, 1, 6, 6), DatasetInfo(image_shape=(1, 6, 6), classes=CLASSES)
    )
    assert got.heat is not None
    assert not bool(got.heat.any())
    assert "0 everywhere" in got.note


def test_attend_says_that_a_map_is_one_value(cnn_spec: Path, cli: Callable[..., Result]) -> None:
    from PIL import Image

    layers = (
        "model.layers=[{type: conv, channels: 4, kernel: 8}, {type: flatten}, {type: dense, units:"
        " classes}]"
    )
    trained = cli("pretrain", cnn_spec, "--set", layers, "--set", "train.steps=1", "--out", "once")
    assert trained.status == 0, trained.err
    Image.new("L", (8, 8), 90).save("grey.png")
    result = cli("attend", "once", "grey.png", "--json")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    assert values["heat"] is None
    assert values["map"] == [1, 1]
    assert "warning: the network's last map is 1 x 1 for images of 8 x 8" in result.err
    assert "what decides it" not in result.err
    assert Image.open(values["picture"]).size[0] > 300
