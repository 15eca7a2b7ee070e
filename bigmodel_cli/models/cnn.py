"""Convolutional networks written layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import OptionError
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.models.base import AnyModelOptions, Model, no_images
from bigmodel_cli.models.in_order import in_order
from bigmodel_cli.models.layer_shapes import Shape, shown
from bigmodel_cli.models.layers import (
    DenseOptions,
    DropoutOptions,
    LayerOptions,
    build_layers,
    ends,
    output_shape,
    with_weights,
)
from bigmodel_cli.models.whitening import Whitening
from bigmodel_cli.parts.checkpointed import checkpointed
from bigmodel_cli.roles import OUTER, Role


class CNNOptions(AnyModelOptions):
    """A stack of conv, whiten, norm, pool, adaptive_pool, residual, dropout, flatten and dense
    layers.
    """

    type: Literal["cnn"] = "cnn"
    outputs: ClassVar = ("labels",)
    layers: Annotated[list[LayerOptions], Field(min_length=1, max_length=1000)] = Field(
        description="the layers, in order"
    )

    def build(self, info: DatasetInfo) -> CNN:
        return CNN(self, info)


class CNN(Model):
    """(B, C, H, W) -> (B, classes)   the layers of the spec in order; `layers.3` is the fourth.

    Initialisation is PyTorch's default, uniform within +-1 / sqrt(inputs): He et al. 2015 for a
    leaky ReLU of slope sqrt(5). BatchNorm starts as the identity.
    """

    stacks = ("layers",)
    recomputes = False

    def __init__(self, options: CNNOptions, info: DatasetInfo) -> None:
        super().__init__()
        if info.image_shape is None or not info.outputs:
            raise no_images("cnn reads labelled images", info)
        classes, self.image_shape = info.outputs, info.image_shape
        self.layers, shape = build_layers(options.layers, info.image_shape, classes, "model.layers")
        if shape != (classes,):
            raise OptionError(other_end(options.layers, shape, classes))
        self.learns_before = any(isinstance(m, Whitening) for m in self.modules())

    def forward(self, images: Tensor) -> Tensor:
        """The logits of each image."""
        if not (self.recomputes and self.training):
            return in_order(self.layers, images)
        y = images
        for layer in self.layers:
            y = checkpointed(layer, layer, y) if any(True for _ in layer.parameters()) else layer(y)
        return y

    def recompute(self) -> None:
        self.recomputes = True

    def learn_before(self, batch: Mapping[str, Tensor]) -> None:
        """The axes of the patches that each whitening layer sees, from the first on; those that a
        checkpoint brought stay.

        The layers before it compute as in evaluation: BatchNorm's statistics do not change.
        """
        training = self.training
        layers = [m for m in self.modules() if isinstance(m, Whitening) and not m.learnt()]
        with torch.no_grad():
            self.eval()
            for layer in layers:
                caught = layer.register_forward_pre_hook(lambda m, args: m.learn(args[0]))
                self(*self.arguments(batch))
                caught.remove()
        self.train(training)

    def weight_roles(self) -> dict[str, Role]:
        """The first layers and those of the logits are not hidden."""
        layers = with_weights(self.layers)
        outer = {
            id(p) for layer in ends(layers[0], 0) | ends(layers[-1], -1) for p in layer.parameters()
        }
        names = (name for name, p in self.named_parameters() if id(p) in outer)
        return {name: OUTER for name in names if name.endswith(".weight")}

    def output_layers(self) -> tuple[str, ...]:
        """Prefix of the last layer that has weights: the logits."""
        last = with_weights(self.layers)[-1]
        return tuple(f"layers.{name}" for name, m in self.layers.named_children() if m is last)

    def last_feature_layer(self) -> str:
        """The last convolutional layer, for Grad-CAM: (B, K, h, w) before pooling.

        Where the last convolutions see the whole image at once (LeNet-5's third), it is the last
        one that does not. Raises `SpecError` where there are no convolutions.
        """
        shape: Shape = self.image_shape
        found: str | None = None
        for name, layer in self.layers.named_children():
            shape = output_shape(layer, shape)
            image = len(shape) == 3 and any(isinstance(m, nn.Conv2d) for m in layer.modules())
            if image and (found is None or max(shape[1:]) > 1):
                found = f"layers.{name}"
        return super().last_feature_layer() if found is None else found


def other_end(layers: Sequence[Any], shape: Shape, classes: int) -> tuple[str, str]:
    """The fault of a network whose outputs are not as many as the classes."""
    numbers = [i for i, layer in enumerate(layers) if not isinstance(layer, DropoutOptions)]
    last = max(numbers, default=0)
    path, remedy = f"model.layers.{len(layers) - 1}", "end it with {type: dense, units: classes}"
    if isinstance(layers[last], DenseOptions):
        path, remedy = f"model.layers.{last}.units", f"give --set model.layers.{last}.units=classes"
    fault = f"the network ends with {shown(shape)}, and the data has {classes} classes; {remedy}"
    return path, fault
