"""Grad-CAM: of the map that enters the last pooling, for every network that labels images, by its
formula.
"""

from __future__ import annotations

import itertools
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

from bigmodel_cli.attend.deletion import STEPS, blurred, with_trial
from bigmodel_cli.attend.gradcam import class_of, grad_cam, maps_of, outputs_of
from bigmodel_cli.attend.heat import heat_over
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.loaded import load_checkpoint
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
    model.get_submodule(model.last_feature_layer()).register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    with LastPooling() as pooling:
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 3)
    assert kept[-1] is pooling.entered
    assert min(kept[-1].shape[2:]) >= 5


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize("name", ["vit_b_16", "vit_h_14"])
def test_the_map_of_a_vit_is_what_its_last_block_reads(name: str) -> None:
    model = network(name, 112)
    blocks = list(model.encoder.layers)
    read: list[Tensor] = []
    blocks[-1].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    path = model.last_feature_layer()
    with outputs_of(model, path) as kept:
        model(torch.empty(1, 3, 112, 112))
    assert kept[-1] is read[0]
    side = 112 // int(name[-2:])
    found = model.feature_map(path, kept[-1])
    assert found.shape == (1, read[0].shape[2], side, side)


@pytest.mark.usefixtures("shapes_alone")
@pytest.mark.parametrize(
    "name", ["convnext_tiny", "densenet121", "googlenet", "regnet_y_400mf", "swin_t",
             "swin_v2_t", "squeezenet1_1", "vgg11"],
)  # fmt: skip
def test_every_map_has_the_shape_of_the_image(name: str) -> None:
    """Of images twice as wide as high all are, wherever the channels are: but for odd edges."""
    torch.manual_seed(0)
    height, width = 224, 448
    info = DatasetInfo(image_shape=(3, height, width), classes=CLASSES)
    model = build(TorchvisionOptions(name=name), info).eval()
    found = maps_of(model, torch.empty(1, 3, height, width))
    assert model.last_feature_layer() in found
    assert len(found) > 10
    for path, (rows, columns) in found.items():
        fits = (rows, columns) in {(1, 1), (7, 7), (6, 6)} or abs(columns - 2 * rows) <= 1
        assert fits, (path, rows, columns)  # 1 x 1, 7 x 7, 6 x 6: after the last pooling


@pytest.mark.usefixtures("shapes_alone")
def test_the_maps_of_maxvit_are_those_outside_of_its_windows() -> None:
    """It reads square images alone, whose windows and places in them come out of four axes too."""
    found = maps_of(network("maxvit_t", 224), torch.empty(1, 3, 224, 224))
    assert set(found.values()) == {(side, side) for side in (112, 56, 28, 14, 7, 1)}
    outer = [name for name in found if name.endswith("_attention")]
    assert len(outer) == 2 * len([name for name in found if name.endswith("MBconv")])
    assert not [n for n in found if "_attention.attn_layer" in n or "_swap" in n]


def by_formula(
    model: Any, image: Tensor, features: Callable[[], Tensor], method: str = "gradcam"
) -> tuple[Tensor, int]:
    """For the likeliest class, channel by channel: Selvaraju et al. 2017, equations 1 and 2;
    Chattopadhay et al. 2018, equations 10 and 19, for exp(score); Draelos and Carin 2020.
    """
    logits = model(image.clone().requires_grad_())[0]
    best = int(logits.argmax())
    maps = features()
    slopes = torch.autograd.grad(logits[best], maps)[0][0].double()
    values = maps[0].detach().double()
    total = torch.zeros(maps.shape[2:], dtype=torch.float64)
    for k in range(maps.shape[1]):
        if method == "gradcam":
            total += slopes[k].mean() * values[k]
        elif method == "hirescam":
            total += slopes[k] * values[k]
        else:
            weight = 0.0
            for slope in slopes[k].flatten().tolist():
                below = 2 * slope**2 + float(values[k].sum()) * slope**3
                weight += (slope**2 / below if below else 0.0) * max(slope, 0.0)
            total += weight * values[k]
    return total.clamp(min=0).float(), best


SMALL = {
    "alexnet": 127, "squeezenet1_1": 65, "googlenet": 96, "inception_v3": 139, "mobilenet_v2": 70,
    "mobilenet_v3_small": 96, "mnasnet0_5": 96, "shufflenet_v2_x0_5": 70, "efficientnet_b0": 96,
    "resnet18": 96, "resnet50": 65,
    "regnet_y_400mf": 96, "densenet121": 96, "convnext_tiny": 96, "swin_t": 96, "swin_v2_t": 65,
}  # fmt: skip


OTHERS = [
    pytest.param(n, marks=pytest.mark.slow)
    for n in NAMES
    if n not in SMALL and not n.startswith("vit_")
]


@pytest.mark.parametrize("name", [*SMALL, *OTHERS])
def test_grad_cam_of_torchvisions_networks_equals_its_formula(name: str) -> None:
    side = SMALL.get(name, 224 if name.startswith("maxvit") else 96)
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
    "a ResNet of bottlenecks": (
        [
            {**CONV, "stride": 2},
            *2
            * [
                {
                    "type": "residual",
                    "layers": [
                        {**CONV, "kernel": 1},
                        {**CONV, "padding": 1},
                        {**CONV, "kernel": 1, "channels": 8, "activation": "none"},
                    ],
                }
            ],
            {"type": "adaptive_pool"},
            *TAIL,
        ],
        2,
    ),
    "like ConvNeXt, with depthwise kernels and nothing after the sum": (
        [
            {**CONV, "channels": 6, "kernel": 2, "stride": 2},
            {
                "type": "residual",
                "activation": "none",
                "layers": [
                    {**CONV, "channels": 6, "groups": 6, "padding": 1, "activation": "none"},
                    {**CONV, "channels": 12, "kernel": 1, "norm": "none", "activation": "gelu"},
                    {**CONV, "channels": 6, "kernel": 1, "norm": "none", "activation": "none"},
                ],
            },
            {"type": "dropout"},
            {"type": "adaptive_pool"},
            *TAIL,
        ],
        1,
    ),
    "a map for each class, whose means are the logits": (
        [
            CONV,
            {"type": "conv", "channels": 3, "kernel": 1, "activation": "none"},
            {"type": "adaptive_pool"},
            {"type": "flatten"},
        ],
        1,
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
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam"])
def test_maps_of_our_networks_equal_their_formulas(
    name: str, shape: tuple[int, int, int], method: str
) -> None:
    """Those of pictures, and of sound, whose images are frames (wider than high, one channel)."""
    layers, which = NETWORKS[name]
    model, image = cnn(layers, shape), torch.randn(1, *shape)
    kept: list[Tensor] = []
    model.layers[which].register_forward_hook(lambda module, inputs, output: kept.append(output))
    coarse, best = by_formula(model, image, lambda: kept[-1], method)
    info = DatasetInfo(image_shape=shape, classes=CLASSES)
    got = grad_cam(model, image, info, method=method)
    assert got.layer == f"layers.{which}"
    assert (got.label, got.size) == (CLASSES[best], tuple(coarse.shape))
    assert got.heat is not None
    want = F.interpolate(coarse[None, None], size=shape[1:], mode="bilinear", align_corners=False)[
        0, 0
    ]
    torch.testing.assert_close(got.heat, want / want.max().clamp(min=1e-12), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_of_a_resnet_of_timm_it_is_of_what_timm_pools(name: str, tmp_path: Path) -> None:
    """By timm's own network: its features, and the rest of it run on them."""
    timm = pytest.importorskip("timm")
    from timm.models._hub import save_for_hf

    torch.manual_seed(2)
    theirs = timm.create_model(name, num_classes=3).eval()
    torch.nn.init.normal_(theirs.fc.weight, 0, 0.1)
    named = {"label_names": [*CLASSES]}
    save_for_hf(theirs, tmp_path / "timm", safe_serialization=True, model_config=named)
    loaded = load_checkpoint(tmp_path / "timm", "cpu", tell=lambda said: None)
    assert loaded.model.last_feature_layer() == "layer4"
    image = torch.randn(1, 3, 64, 96)
    maps = theirs.forward_features(image).detach().requires_grad_()
    logits = theirs.forward_head(maps)
    for chosen in range(3):
        (slopes,) = torch.autograd.grad(logits[0, chosen], maps, retain_graph=True)
        want = torch.einsum("k,khw->hw", slopes[0].mean((1, 2)), maps[0].detach()).clamp(min=0)
        got = grad_cam(loaded.model, image, loaded.info, chosen=chosen)
        assert (got.label, got.size) == (CLASSES[chosen], (2, 3))
        assert got.coarse is not None
        torch.testing.assert_close(got.coarse, want, atol=1e-5, rtol=1e-3)


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


FLAT: list[dict[str, Any]] = [
    CONV,
    {"type": "pool"},
    {**CONV, "norm": "none"},
    {"type": "adaptive_pool"},
    *TAIL,
]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("chosen", [0, 2])
def test_any_layer_and_any_class(layer: int, chosen: int) -> None:
    """The rest of the network is run by hand on the layer's map."""
    model, image = cnn(FLAT, (3, 14, 17)), torch.randn(1, 3, 14, 17)
    maps = model.layers[: layer + 1](image).detach().requires_grad_()
    logits = model.layers[layer + 1 :](maps)
    (slopes,) = torch.autograd.grad(logits[0, chosen], maps)
    want = torch.einsum("k,khw->hw", slopes[0].mean((1, 2)), maps[0].detach()).clamp(min=0)
    info = DatasetInfo(image_shape=(3, 14, 17), classes=CLASSES)
    got = grad_cam(model, image, info, layer=f"layers.{layer}", chosen=chosen)
    assert (got.label, got.layer, got.size) == (CLASSES[chosen], f"layers.{layer}", want.shape)
    assert got.probability == pytest.approx(float(logits.detach().softmax(1)[0, chosen]), abs=1e-6)
    assert got.coarse is not None
    torch.testing.assert_close(got.coarse, want, atol=1e-6, rtol=1e-4)


def test_hirescams_map_adds_up_to_the_score_where_the_rest_is_linear() -> None:
    model, image = cnn(FLAT, (3, 14, 17)), torch.randn(1, 3, 14, 17)
    info = DatasetInfo(image_shape=(3, 14, 17), classes=CLASSES)
    got = grad_cam(model, image, info, method="hirescam", chosen=1)
    assert got.accounts is not None
    bias = float(model.layers[-1].dense.bias.detach()[1])
    assert got.accounts == pytest.approx((float(model(image).detach()[0, 1]) - bias,) * 2, abs=1e-5)
    assert any("how much each place adds" in remark for remark in got.remarks)
    early = grad_cam(model, image, info, method="hirescam", layer="layers.0.conv", chosen=1)
    assert early.accounts is not None
    assert abs(early.accounts[0] - early.accounts[1]) > 1e-3  # a pooling and ReLUs follow
    assert grad_cam(model, image, info, chosen=1).accounts is None


def test_layers_and_classes_that_are_not_there_are_refused_with_those_that_are() -> None:
    model, image = cnn(FLAT, (3, 14, 17)), torch.randn(1, 3, 14, 17)
    info = DatasetInfo(image_shape=(3, 14, 17), classes=CLASSES)
    assert maps_of(model, image) == {
        "layers.0.conv": (12, 15), "layers.0.norm": (12, 15), "layers.0.activation": (12, 15),
        "layers.0": (12, 15), "layers.1": (6, 7),
        "layers.2.conv": (4, 5), "layers.2.activation": (4, 5), "layers.2": (4, 5),
        "layers.3": (1, 1),
    }  # fmt: skip
    with pytest.raises(SpecError, match=r"layers.5 gives no map .*: layers.2 \(4 x 5\), "):
        grad_cam(model, image, info, layer="layers.5")
    with pytest.raises(SpecError, match=r"layer.2 is not in it; did you mean .*2 \(4 x 5\)"):
        grad_cam(model, image, info, layer="layer.2")
    with pytest.raises(SpecError, match=r"--class 'd' is not one of .* a, b, c"):
        class_of("d", info)
    assert [class_of(name, info) for name in (None, "c")] == [None, 2]


def test_grad_cam_plus_plus_says_where_it_is_not_derived_for_a_map() -> None:
    model, image = cnn(FLAT, (3, 14, 17)), torch.randn(1, 3, 14, 17)
    info = DatasetInfo(image_shape=(3, 14, 17), classes=CLASSES)
    got = grad_cam(model, image, info, method="gradcam++", layer="layers.2.conv")
    assert "not below zero, and that of layers.2.conv is" in got.note
    assert not grad_cam(model, image, info, method="gradcam++", layer="layers.2").note


def test_a_map_of_few_places_is_said_to_be_one_with_a_finer_one() -> None:
    model, image = cnn(FLAT, (3, 19, 23)), torch.randn(1, 3, 19, 23)
    info = DatasetInfo(image_shape=(3, 19, 23), classes=CLASSES)
    assert not grad_cam(model, image, info).note  # 6 x 8
    image = image[..., :14, :17]
    note = grad_cam(model, image, info).note
    assert "the map of layers.2 has 4 x 5 places" in note
    assert "an earlier layer has 12 x 15: --cam-layer layers.0" in note
    assert not grad_cam(model, image, info, layer="layers.2").note


class Corner(torch.nn.Module):
    """Its first class is how bright the corner above on the left is beside all of the image."""

    def forward(self, images: Tensor) -> Tensor:
        score = 8 * (images[:, 0, :4, :6].mean((1, 2)) - images.mean((1, 2, 3)))
        return torch.stack((score, torch.zeros_like(score)), 1)


def test_a_map_is_put_to_the_test_by_deletion_and_insertion() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 8, 10)
    image[..., :4, :6] += 1
    info = DatasetInfo(image_shape=(1, 8, 10), classes=("a", "b"))
    model: Any = Corner()
    right = torch.rand(1, 1, 8, 10) * 0.1
    right[..., :4, :6] += 1
    got = with_trial(
        heat_over(image, right, model(image), info, None, "by hand"), model, image, info
    )
    order = sorted(range(80), key=lambda i: -float(right.flatten()[i]))
    whole = float(model(image).softmax(1)[0, 0])
    assert got.trial is not None
    for step in range(1, STEPS + 1):
        gone = image.clone().flatten()
        gone[order[: 10 * step]] = image.mean()
        alone = torch.full_like(gone, float(image.mean()))
        alone[order[: 10 * step]] = image.flatten()[order[: 10 * step]]
        for flat, found in ((gone, got.trial.deleted), (alone, got.trial.inserted)):
            kept = float(model(flat.view(1, 1, 8, 10)).softmax(1)[0, 0]) / whole
            assert found[step - 1] == pytest.approx(kept, abs=1e-5)
    curve = [1.0, *got.trial.deleted]
    deletion = sum(a + b for a, b in itertools.pairwise(curve)) / 2 / STEPS
    assert got.trial.areas[0] == pytest.approx(deletion)
    assert got.trial.verdict == "better than each of 5 random maps in both"
    assert "the class keeps" in got.remarks[-1]
    assert "replaced by the image's mean colour" in got.remarks[-1]
    assert got.to_json()["test"]["in_place_of_pixels"] == "the image's mean colour"
    again = with_trial(got, model, image, info)
    assert again.trial == got.trial
    wrong = with_trial(
        heat_over(image, 2 - right, model(image), info, None, "x"), model, image, info
    )
    assert wrong.trial is not None
    assert wrong.trial.areas[0] > got.trial.areas[0]
    assert "do not read the map" in wrong.trial.verdict
    never: Any = lambda images: torch.tensor([[9.0, 0.0]]).expand(len(images), 2)  # noqa: E731
    unlikely = with_trial(got, never, image, info, None, 1)
    assert unlikely.trial == got.trial
    assert "0.012 % of probability to lose" in unlikely.remarks[0]
    same: Any = lambda images: torch.tensor([[1.0, 0.0]]).expand(len(images), 2)  # noqa: E731
    idle = with_trial(got, same, image, info).trial
    assert idle is not None
    assert idle.verdict == "this says little: without any of the image the class keeps 100 %"
    flat = heat_over(image, torch.zeros(1, 1, 8, 10), model(image), info, None, "x")
    assert with_trial(flat, model, image, info).trial is None


def test_a_map_is_put_to_the_test_on_the_blurred_image() -> None:
    """By scipy's filter, whose `reflect` mirrors as this does; and the picture says which."""
    ndimage = pytest.importorskip("scipy.ndimage")
    torch.manual_seed(6)
    image = torch.randn(1, 3, 14, 30)
    want = ndimage.gaussian_filter(image.numpy(), (0, 0, 1.4, 3.0), mode="reflect", truncate=12)
    torch.testing.assert_close(blurred(image), torch.from_numpy(want), atol=2e-4, rtol=0)
    torch.testing.assert_close(blurred(torch.ones(1, 2, 5, 7)), torch.ones(1, 2, 5, 7))
    info = DatasetInfo(image_shape=(1, 14, 30), classes=("a", "b"))
    image = image[:, :1] + 0.0
    image[..., :4, :6] += 3
    model: Any = Corner()
    right = torch.rand(1, 1, 14, 30) * 0.1
    right[..., :4, :6] += 1
    heat = heat_over(image, right, model(image), info, None, "by hand")
    got = with_trial(heat, model, image, info, baseline="blur").trial
    assert got is not None
    order = right.flatten().argsort(descending=True)[: round(14 * 30 / STEPS)]
    gone = image.clone().flatten()
    gone[order] = blurred(image).flatten()[order]
    probability = [
        float(model(one).softmax(1)[0, 0]) for one in (gone.view_as(image), blurred(image), image)
    ]
    assert got.deleted[0] == pytest.approx(probability[0] / probability[2], abs=1e-5)
    assert got.deleted[-1] == pytest.approx(probability[1] / probability[2], abs=1e-5)
    assert "replaced by the blurred image" in got.sentence
    assert got.to_json()["in_place_of_pixels"] == "the blurred image"


def test_attend_says_that_a_map_is_one_value(cnn_spec: Path, cli: Callable[..., Result]) -> None:
    from PIL import Image

    layers = (
        "model.layers=[{type: conv, channels: 4, kernel: 8}, {type: flatten}, {type: dense, units:"
        " classes}]"
    )
    trained = cli("pretrain", cnn_spec, "--set", layers, "--set", "train.steps=1", "--out", "once")
    assert trained.status == 0, trained.err
    Image.new("L", (8, 8), 90).save("grey.png")
    result = cli("attend", "once", "grey.png", "--json", "--png", "cam.png")
    assert result.status == 0, result.err
    values = json.loads(result.out)
    assert values["heat"] is None
    assert values["map"] == [1, 1]
    assert "the network's last map is 1 x 1 for images of 8 x 8" in result.err
    assert values["files"] == ["cam.png"]
    assert Image.open("cam.png").size[0] > 300
    shown = cli("attend", "once", "grey.png")
    assert "what decides it" not in shown.out
