"""Classification networks of torchvision by name, with its own parameter names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import say
from bigmodel_cli.errors import OptionError, ResourceError, SpecError, did_you_mean
from bigmodel_cli.lazy import Module, Tensor, nn
from bigmodel_cli.models.base import AnyModelOptions, Model, Resizing, no_images
from bigmodel_cli.models.feature_maps import (
    CHANNELS_LAST,
    LAST_MAPS,
    NO_MAPS,
    WINDOWS,
    grid_of_tokens,
    of_family,
)
from bigmodel_cli.parts.dropout import drawn_by_row
from bigmodel_cli.parts.grid import positions_between
from bigmodel_cli.parts.multihead import watched
from bigmodel_cli.parts.one_place import at_one_place
from bigmodel_cli.roles import GAIN, OUTER, Role

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Auxiliary heads, which networks are built without here."""
_OLD_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
"""DenseNet's files say norm.1 and conv.2 for norm1 and conv2."""


class TorchvisionOptions(AnyModelOptions):
    """A classification network of torchvision: alexnet, resnet18, convnext_tiny, swin_t ..."""

    type: Literal["torchvision"] = "torchvision"
    outputs: ClassVar = ("labels",)
    in_blocks: ClassVar = (
        "torchvision builds it whole; a ViT that timm or transformers published (deit_tiny, DINOv2)"
        " is read in blocks, from its folder or hf://org/name"
    )
    name: str = Field(description="the network's name in torchvision")
    weights: str | None = Field(
        None,
        description=(
            "name of pretrained weights (DEFAULT, IMAGENET1K_V1), downloaded once; null for none"
        ),
    )

    def build(self, info: DatasetInfo) -> TorchvisionModel:
        return build_torchvision(self, info)

    def without_download(self) -> TorchvisionOptions:
        """Without `weights`."""
        return self.model_copy(update={"weights": None})


def build_torchvision(options: TorchvisionOptions, info: DatasetInfo) -> TorchvisionModel:
    """The network for the data's classes.

    Raises `OptionError` for an unknown name, or data that it cannot read.
    """
    import torchvision

    if info.image_shape is None or not info.outputs:
        raise no_images("torchvision reads labelled images", info)
    channels = info.image_shape[0]
    if channels != 3:
        raise OptionError(
            (
                "model.type",
                (
                    f"torchvision's networks read 3 channels, and the data has {channels}; set"
                    " data.channels: 3"
                ),
            )
        )
    names = torchvision.models.list_models(module=torchvision.models)
    if options.name not in names:
        hint = did_you_mean(options.name, names)
        raise OptionError(
            ("model.name", f"torchvision has no classification network {options.name!r}{hint}")
        )
    height, width = info.image_shape[1:]
    keywords = {"num_classes": info.outputs, **arguments(options.name, height, width)}
    try:
        network = as_model(
            torchvision.models.get_model(options.name, weights=None, **keywords), options.name
        )
    except NotImplementedError:  # RegNet is not built on the meta device
        raise
    except (ValueError, AssertionError, RuntimeError) as error:
        raise OptionError(
            ("model.name", f"{options.name} cannot be built for {height} x {width} images: {error}")
        ) from None
    if options.weights is not None:
        _load_pretrained(network, options)
    return network


def arguments(name: str, height: int, width: int) -> dict[str, Any]:
    """What torchvision's function takes beside the classes, for images of this size.

    Raises `OptionError` for images that the network does not read.
    """
    if name.startswith("vit_"):  # its parameters depend on the image's size
        if height != width:
            raise OptionError(
                (
                    "model.name",
                    f"{name} reads square images, and the data's are {height} x {width}",
                )
            )
        return {"image_size": height}
    if name.startswith("maxvit_"):
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    return {}


def today(name: str) -> str:
    """The present name of a tensor in an older file."""
    return _OLD_NAME.sub(r"\1", name)


def _load_pretrained(network: TorchvisionModel, options: TorchvisionOptions) -> None:
    """Load downloaded weights, all but a head of another size.

    Raises `OptionError` where others do not fit.
    """
    import torchvision

    known = torchvision.models.get_model_weights(options.name)
    choices = [*known.__members__, "DEFAULT"]
    if options.weights not in choices:
        hint = did_you_mean(str(options.weights), choices)
        raise OptionError(
            (
                "model.weights",
                (
                    f"{options.name} has the weights {', '.join(choices)}, not"
                    f" {options.weights!r}{hint}"
                ),
            )
        )
    weights = known.DEFAULT if options.weights == "DEFAULT" else known[options.weights]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ResourceError(
            f"model.weights: {weights.url} cannot be downloaded ({error}); connect to the network,"
            " put the file into torch's hub cache, or set model.weights: null"
        ) from None
    given = {today(name): tensor for name, tensor in state.items()}
    fresh = fitting(network, given, weights.name)
    if next(network.parameters()).is_meta:  # where there is nothing to fill
        return
    network.load_state_dict({n: t for n, t in given.items() if n not in fresh}, strict=False)
    say(
        f"weights: {len(given.keys() & network.state_dict().keys() - fresh)} tensors of"
        f" {options.name}'s {weights.name}"
    )
    if fresh:
        say(f"newly initialised, since the classes differ: {', '.join(fresh)}")
    if ignored := sorted(
        {name.split(".")[0] for name in given.keys() - network.state_dict().keys()}
    ):
        say(f"ignored of the weights: {', '.join(ignored)}")


def fitting(network: TorchvisionModel, given: Mapping[str, Tensor], name: str) -> list[str]:
    """The network's tensors that are not loaded: those of a head of another size.

    Raises `OptionError` where another is missing, too many, or of another shape.
    """
    own = {n: list(t.shape) for n, t in network.state_dict().items()}
    shapes = {n: list(t.shape) for n, t in given.items() if not n.startswith(AUXILIARY)}
    # files from before 2018 do not count batches
    counted = {n for n in own.keys() - shapes.keys() if n.endswith(".num_batches_tracked")}
    wrong = [n for n in own | shapes if own.get(n) != shapes.get(n) and n not in counted]
    (head,) = network.output_layers()
    for n in wrong:
        if not n.startswith(f"{head}.") or n not in own or n not in shapes:
            there, here = (
                f"has the shape {found[n]}" if n in found else "is not there"
                for found in (shapes, own)
            )
            raise OptionError(
                (
                    "model.weights",
                    (
                        f"{name} does not fit: {n} {there} in the file, and {here} in the network"
                        " (for images of this size); write model.weights: null, or data.size as"
                        " the weights have it"
                    ),
                )
            )
    return wrong


class TorchvisionModel(Model):
    """(B, 3, H, W) -> (B, classes)   makes a network of torchvision a `Model`."""

    name: str
    patch_size: int  # of a ViT
    image_size: int

    def output_layers(self) -> tuple[str, ...]:
        """The last linear layer or convolution (SqueezeNet)."""
        return (self.matrices()[-1],)

    def resizing(self, before: DatasetInfo) -> Mapping[str, Resizing]:
        """A ViT's learned positions are interpolated."""
        if not self.name.startswith("vit_") or before.image_shape is None:
            return {}
        patch, height, width = self.patch_size, *before.image_shape[1:]
        old, new = (height // patch, width // patch), (self.image_size // patch,) * 2
        change = partial(positions_between, old=old, new=new, first=1)
        return {"encoder.pos_embedding": change} if old != new else {}

    def matrices(self) -> list[str]:
        """The names of the linear layers and convolutions."""
        return [n for n, m in self.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    def weight_roles(self) -> dict[str, Role]:
        """First and last layers; Swin v2 computes its position biases by small networks."""
        layers = self.matrices()
        biases = {f"{name}.weight": GAIN for name in layers if ".cpb_mlp." in name}
        return {**biases, f"{layers[0]}.weight": OUTER, f"{layers[-1]}.weight": OUTER}

    def last_feature_layer(self) -> str:
        """The module whose output (B, K, h, w) enters the last pooling, for Grad-CAM.

        Its output may be changed in place before that. Of a ViT, whose label is read from the class
        token, it is what the last block reads. Raises `SpecError` for an unknown family.
        """
        if self.grid is not None:
            blocks = [n for n, _ in self.get_submodule("encoder.layers").named_children()]
            return f"encoder.layers.{blocks[-2]}"
        path = next(
            (path for family, path in LAST_MAPS.items() if self.name.startswith(family)), None
        )
        if path is None:
            raise SpecError(
                "model.name: Grad-CAM needs a map of the image that enters a last pooling, and none"
                f" is known here of {self.name}; name the layer: --cam-layer"
            )
        return path

    def feature_map(self, name: str, output: Tensor) -> Tensor | None:
        """Swin and ConvNeXt have channels last inside; a ViT has patches in a row."""
        if of_family(NO_MAPS, self.name, name):
            return None
        if self.grid is not None and output.dim() == 3:
            return grid_of_tokens(output, self.first, self.grid)
        found = super().feature_map(name, output)
        last = found is not None and of_family(CHANNELS_LAST, self.name, name)
        return found.permute(0, 3, 1, 2) if last and found is not None else found

    def unseen_attention(self) -> str:
        return next((why for name, why in WINDOWS.items() if self.name.startswith(name)), "")


def as_model(network: Module, name: str) -> TorchvisionModel:
    """Make a network of torchvision a `Model` in place; weights, names and class name stay."""
    own, grid = type(network), None
    for module in network.modules():
        at_one_place(module)
        drawn_by_row(module)
    if name.startswith("vit_"):
        side = network.image_size // network.patch_size  # type: ignore[operator]
        grid = (side, side)
        for module in network.modules():
            watched(module)
    network.__class__ = type(
        own.__name__,
        (TorchvisionModel, own),
        {"name": name, "grid": grid, "first": int(grid is not None)},
    )
    return network  # type: ignore[return-value]
