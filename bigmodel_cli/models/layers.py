"""The layers of convolutional networks: their options, and residual branches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from bigmodel_cli.config import Count, Natural, Options, Positive, Probability
from bigmodel_cli.errors import under
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.models.in_order import in_order
from bigmodel_cli.models.layer_shapes import (
    Activation,
    Shape,
    activation_of,
    fits,
    named,
    needs_image,
    shape_after,
    shown,
)
from bigmodel_cli.models.whitening import Whitening
from bigmodel_cli.parts.dropout import dropout_module
from bigmodel_cli.parts.one_place import at_one_place


class ConvOptions(Options):
    """A convolution, then normalisation, then the activation."""

    type: Literal["conv"] = "conv"
    channels: Count = Field(description="output channels")
    kernel: Count = Field(3, description="height and width of the kernel")
    stride: Count = Field(1, description="step of the kernel")
    padding: Natural | Literal["same", "valid"] = Field(
        "valid", description="a number, valid (none), or same (stride 1)"
    )
    groups: Count = Field(1, description="groups of channels that do not mix")
    norm: Literal["none", "batch"] = Field(
        "none", description="batch: BatchNorm (Ioffe and Szegedy 2015), without conv bias"
    )
    bias: bool = Field(True, description="added to each channel, where norm: none")
    activation: Activation = Field("relu", description="what follows")
    start: Literal["random", "identity"] = Field(
        "random",
        description="first kernels: PyTorch's, or of the first channels the input's (needs an odd"
        " kernel, and groups: 1)",
    )

    def build(self, shape: Shape, classes: int) -> Module:
        """The layer for an input of `shape`."""
        needs_image(shape, self.type)
        if self.start == "identity" and (self.kernel % 2 == 0 or self.groups > 1):
            raise ValueError("start: identity needs an odd kernel, and groups: 1")
        if shape[0] % self.groups or self.channels % self.groups:
            raise ValueError(
                f"groups: {self.groups} does not divide {shape[0]} input and {self.channels} output"
                " channels"
            )
        if self.padding == "same" and self.stride > 1:
            raise ValueError("padding: same needs stride 1; give a number")
        padding = 0 if self.padding == "valid" else self.padding
        fits(self.kernel, shape, self.kernel - 1 if padding == "same" else 2 * padding)
        conv = nn.Conv2d(
            shape[0], self.channels, self.kernel, self.stride,
            padding=padding, groups=self.groups, bias=self.bias and self.norm == "none",
        )  # fmt: skip
        if self.start == "identity":
            nn.init.dirac_(conv.weight[: shape[0]].detach())
        at_one_place(conv)
        norm = nn.BatchNorm2d(self.channels) if self.norm == "batch" else None
        return named(conv=conv, norm=norm, activation=activation_of(self.activation))


class WhitenOptions(Options):
    """Patches along the principal axes of the first batch's patches, each of variance one, twice:
    with either sign (Page 2018). Only its bias is trained.
    """

    type: Literal["whiten"] = "whiten"
    kernel: Count = Field(2, description="height and width of a patch")
    eps: Positive = Field(5e-4, description="added to each axis's variance")
    activation: Activation = Field("gelu", description="what follows")

    def build(self, shape: Shape, classes: int) -> Module:
        """The layer for an input of `shape`."""
        needs_image(shape, self.type)
        fits(self.kernel, shape, 0)
        whiten = Whitening(shape[0], self.kernel, self.eps)
        return named(whiten=whiten, activation=activation_of(self.activation))


class NormOptions(Options):
    """BatchNorm of an image's channels, then the activation: after a pool layer, where they cost
    less.
    """

    type: Literal["norm"] = "norm"
    activation: Activation = Field("none", description="what follows")

    def build(self, shape: Shape, classes: int) -> Module:
        """The layer for an input of `shape`."""
        needs_image(shape, self.type)
        return named(norm=nn.BatchNorm2d(shape[0]), activation=activation_of(self.activation))


class PoolOptions(Options):
    """The maximum or the mean of each window."""

    type: Literal["pool"] = "pool"
    kind: Literal["max", "avg"] = Field("max", description="max or avg")
    kernel: Count = Field(2, description="height and width of the window")
    stride: Count | None = Field(
        None, description="step of the window; the kernel's size when left out"
    )
    padding: Natural = Field(
        0, description="rows and columns added at each edge, at most half the kernel"
    )

    def build(self, shape: Shape, classes: int) -> Module:
        """The layer for an input of `shape`."""
        needs_image(shape, self.type)
        if self.padding > self.kernel // 2:
            raise ValueError(
                f"padding: {self.padding} is more than half of the kernel {self.kernel}"
            )
        fits(self.kernel, shape, 2 * self.padding)
        kind = nn.MaxPool2d if self.kind == "max" else nn.AvgPool2d
        return kind(self.kernel, self.stride, self.padding)


class AdaptivePoolOptions(Options):
    """The mean (or the maximum) over a grid of a fixed size; size 1 is global pooling."""

    type: Literal["adaptive_pool"] = "adaptive_pool"
    size: Count = Field(1, description="height and width that come out")
    kind: Literal["avg", "max"] = Field("avg", description="avg or max")

    def build(self, shape: Shape, classes: int) -> Module:
        """The layer for an input of `shape`."""
        needs_image(shape, self.type)
        return (nn.AdaptiveAvgPool2d if self.kind == "avg" else nn.AdaptiveMaxPool2d)(self.size)


class FlattenOptions(Options):
    """Images to vectors, row by row."""

    type: Literal["flatten"] = "flatten"

    def build(self, shape: Shape, classes: int) -> Module:
        """The layer for an input of `shape`."""
        return nn.Flatten()


class DenseOptions(Options):
    """A fully connected layer, then the activation.

    `units: classes` means the data's number of classes, or of numbers to learn.
    """

    type: Literal["dense"] = "dense"
    units: Count | Literal["classes"] = Field(
        description="outputs; the last layer of a classifier: classes"
    )
    activation: Activation = Field("none", description="what follows")

    def build(self, shape: Shape, classes: int) -> Module:
        """The layer for an input of `shape`."""
        if len(shape) != 1:
            raise ValueError(
                f"its input is an image of {shown(shape)}; put a flatten layer before it"
            )
        units = classes if self.units == "classes" else self.units
        return named(dense=nn.Linear(shape[0], units), activation=activation_of(self.activation))


class DropoutOptions(Options):
    """Dropout (Srivastava et al. 2014)."""

    type: Literal["dropout"] = "dropout"
    p: Probability = Field(0.5, description="probability of dropping a value")

    def build(self, shape: Shape, classes: int) -> Module:
        """The layer for an input of `shape`."""
        return dropout_module(self.p)


class ResidualOptions(Options):
    """x + layers(x) (He et al. 2016), with a 1 x 1 convolution of x where the shape changes."""

    type: Literal["residual"] = "residual"
    layers: Annotated[list[LayerOptions], Field(min_length=1)] = Field(description="the branch")
    activation: Activation = Field("relu", description="what follows the sum")

    def build(self, shape: Shape, classes: int) -> Module:
        """The layer for an input of `shape`."""
        needs_image(shape, self.type)
        return Residual(self, shape, classes)


LayerOptions = Annotated[
    ConvOptions
    | WhitenOptions
    | NormOptions
    | PoolOptions
    | AdaptivePoolOptions
    | FlattenOptions
    | DenseOptions
    | DropoutOptions
    | ResidualOptions,
    Field(discriminator="type"),
]


ResidualOptions.model_rebuild()


class Residual(Module):
    """(B, C, H, W) -> (B, K, h, w)   act(shortcut(x) + layers(x)) (He et al. 2016)."""

    def __init__(self, options: ResidualOptions, shape: Shape, classes: int) -> None:
        super().__init__()
        self.layers, out = build_layers(options.layers, shape, classes, "layers")
        if len(out) != 3 or shape[1] % out[1] or shape[2] % out[2]:
            raise ValueError(
                f"layers: they turn {shown(shape)} into {shown(out)}, which cannot be added to"
                " the input"
            )
        stride = (shape[1] // out[1], shape[2] // out[2])
        same = shape[0] == out[0] and stride == (1, 1)
        self.shortcut = nn.Identity() if same else _project(shape[0], out[0], stride)
        self.activation = activation_of(options.activation) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The branch added to its input."""
        y: Tensor = self.activation(self.shortcut(x) + in_order(self.layers, x))
        return y


def ends(layer: Module, end: Literal[0, -1]) -> set[Module]:
    """The convolutions and dense layers at the input (end 0) or the output (end -1) of `layer`."""
    if not isinstance(layer, Residual):
        return {m for m in layer.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    branch = with_weights(layer.layers)
    shortcut = {m for m in layer.shortcut.modules() if isinstance(m, nn.Conv2d)}
    return shortcut | (ends(branch[end], end) if branch else set())


def with_weights(layers: Iterable[Module]) -> list[Module]:
    """Those of the layers that have weights."""
    return [layer for layer in layers if any(True for _ in layer.parameters())]


def _project(channels: int, out: int, stride: tuple[int, int]) -> Module:
    conv = nn.Conv2d(channels, out, 1, stride, bias=False)
    return named(conv=conv, norm=nn.BatchNorm2d(out))


def build_layers(
    options: Sequence[Any], shape: Shape, classes: int, path: str
) -> tuple[Any, Shape]:
    """The layers as a Sequential, and the output shape.

    Raises `OptionError` naming the layer that does not fit.
    """
    layers = nn.Sequential()
    for index, layer_options in enumerate(options):
        with under(f"{path}.{index}"):
            layer = layer_options.build(shape, classes)
            shape = output_shape(layer, shape)
        layers.append(layer)
    return layers, shape


def output_shape(layer: Module, shape: Shape) -> Shape:
    """The output shape of `layer` for `shape`; its storage is not made."""
    if isinstance(layer, Residual):
        return output_shape(layer.layers, shape)
    if isinstance(layer, nn.Sequential):
        for part in layer:
            shape = output_shape(part, shape)
        return shape
    known = shape_after(layer, shape)
    if known is not None:
        return known
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        return tuple(copy.deepcopy(layer).to("meta").eval()(torch.empty(1, *shape)).shape[1:])
