"""Classification networks of torchvision by name, with its own parameter names."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import Facts
from bigmodel_cli.errors import ResourceError, SpecError, did_you_mean
from bigmodel_cli.lazy import Module, nn
from bigmodel_cli.models.base import AnyModelOptions
from bigmodel_cli.roles import GAIN, OUTER, Role

LAST_MAPS = {
    "alexnet": "features",
    "convnext": "features",
    "densenet": "features",  # rectified in place behind it
    "efficientnet": "features",
    "googlenet": "inception5b",
    "inception": "Mixed_7c",
    "maxvit": "blocks.3",
    "mnasnet": "layers",
    "mobilenet": "features",
    "regnet": "trunk_output",
    "resnet": "layer4",
    "resnext": "layer4",
    "shufflenet": "conv5",
    "squeezenet": "classifier.2",  # a map for each class, of which the logits are the means
    "swin": "permute",  # channels first again
    "vgg": "features",
    "wide_resnet": "layer4",
}
"""Family -> the module whose output enters the pooling behind which there is no image any more."""


class TorchvisionOptions(AnyModelOptions):
    """A classification network of torchvision: alexnet, resnet18, convnext_tiny, efficientnet_b0, vit_b_16, swin_t ..."""

    type: Literal["torchvision"] = "torchvision"
    outputs: ClassVar = ("labels",)
    name: str = Field(description="the network's name in torchvision")
    weights: str | None = Field(
        None, description="name of pretrained weights (DEFAULT, IMAGENET1K_V1), downloaded once; null for none"
    )


def build_torchvision(options: TorchvisionOptions, facts: Facts) -> Module:
    """The network for the data's classes. Raises `SpecError` for an unknown name, or data that it cannot read."""
    import torchvision

    if facts.image_shape is None or not facts.classes:
        raise SpecError("model.type: torchvision reads labelled images, and the data has none")
    channels, height, width = facts.image_shape
    if channels != 3:
        raise SpecError(
            f"model.type: torchvision's networks read 3 channels, and the data has {channels}; set data.channels: 3"
        )
    names = torchvision.models.list_models(module=torchvision.models)
    if options.name not in names:
        hint = did_you_mean(options.name, names)
        raise SpecError(f"model.name: torchvision has no classification network {options.name!r}{hint}")
    keywords: dict[str, Any] = {"num_classes": len(facts.classes)}
    if options.name.startswith("vit_"):  # its parameters depend on the image's size
        if height != width:
            raise SpecError(f"model.name: {options.name} reads square images, and the data's are {height} x {width}")
        keywords["image_size"] = height
    if options.name.startswith("maxvit_"):
        keywords["input_size"] = (height, width)
    if options.name in ("googlenet", "inception_v3"):
        keywords |= {"aux_logits": False, "init_weights": True}
    try:
        network = torchvision.models.get_model(options.name, weights=None, **keywords)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise SpecError(f"model.name: {options.name} cannot be built for {height} x {width} images: {error}") from None
    if options.weights is not None:
        _load_pretrained(network, options)
    return as_model(network, options.name)


def _load_pretrained(network: Module, options: TorchvisionOptions) -> None:
    """Fill in downloaded weights, all but a head of another size."""
    import torchvision

    known = torchvision.models.get_model_weights(options.name)
    choices = [*known.__members__, "DEFAULT"]
    if options.weights not in choices:
        hint = did_you_mean(str(options.weights), choices)
        raise SpecError(
            f"model.weights: {options.name} has the weights {', '.join(choices)}, not {options.weights!r}{hint}"
        )
    weights = known.DEFAULT if options.weights == "DEFAULT" else known[options.weights]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ResourceError(
            f"model.weights: {weights.url} cannot be downloaded ({error}); connect to the network, put the file into torch's hub "
            "cache, or set model.weights: null"
        ) from None
    own = network.state_dict()
    network.load_state_dict(
        {n: t if t.shape == own[n].shape else own[n] for n, t in state.items() if n in own}, strict=False
    )


def as_model(network: Any, name: str) -> Module:
    """Give a torchvision network what every image model here has: `head_names`, `weight_roles` and `last_feature_layer`."""
    network.head_names = lambda: _head_names(network)
    network.weight_roles = lambda: _weight_roles(network)
    network.last_feature_layer = lambda: _last_feature_layer(network, name)
    model: Module = network
    return model


def _head_names(network: Module) -> tuple[str, ...]:
    """The last linear layer, or the last convolution where there is none after it (SqueezeNet)."""
    last = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    return (last,)


def _weight_roles(network: Module) -> dict[str, Role]:
    """The first convolution reads the image, the last layer makes the logits; Swin v2 makes its position biases by networks."""
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    biases = {f"{name}.weight": GAIN for name in layers if ".cpb_mlp." in name}
    return {**biases, f"{layers[0]}.weight": OUTER, **{f"{name}.weight": OUTER for name in _head_names(network)}}


def _last_feature_layer(network: Module, name: str) -> Module:
    """The module whose output (B, K, h, w), after what is done to it in place, enters the last pooling: for Grad-CAM.

    Raises `SpecError` for a network that looks by attention, or of a family that is not known.
    """
    path = next((path for family, path in LAST_MAPS.items() if name.startswith(family)), None)
    if path is None:
        raise SpecError(
            f"model.name: Grad-CAM needs a map of the image that enters a last pooling, and {name} has none (it looks by "
            "attention), or none that is known here"
        )
    return network.get_submodule(path)
