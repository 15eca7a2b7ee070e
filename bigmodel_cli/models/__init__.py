"""Models: skeletons that join parts, and networks of their own kind. One file each, one line in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from bigmodel_cli.config import Facts
from bigmodel_cli.lazy import Module
from bigmodel_cli.models.base import AnyModelOptions
from bigmodel_cli.models.cnn import CNN, CNNOptions
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.models.encoder import Encoder, EncoderOptions
from bigmodel_cli.models.seq2seq import Seq2Seq, Seq2SeqOptions
from bigmodel_cli.models.torchvision import TorchvisionOptions, build_torchvision
from bigmodel_cli.models.vit import ViT, ViTOptions
from bigmodel_cli.models.within import within

AnyModel = DecoderOptions | EncoderOptions | Seq2SeqOptions | ViTOptions | CNNOptions | TorchvisionOptions
ModelOptions = Annotated[AnyModel, Field(discriminator="type")]

MODELS: dict[str, type[AnyModelOptions]] = {
    "decoder": DecoderOptions,
    "encoder": EncoderOptions,
    "seq2seq": Seq2SeqOptions,
    "vit": ViTOptions,
    "cnn": CNNOptions,
    "torchvision": TorchvisionOptions,
}
_BUILDERS: dict[str, Callable[[Any, Facts], Module]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "seq2seq": Seq2Seq,
    "vit": ViT,
    "cnn": CNN,
    "torchvision": build_torchvision,
}

_TWO_SIDED = {"encoder": "model.blocks", "vit": "model", "seq2seq": "model.encoder"}
"""Below these paths positions see those after them too."""


def sees_both_sides(options: AnyModel, path: str) -> bool:
    """Whether a part at this path of the spec stands where positions see all others, not those before them alone."""
    above = _TWO_SIDED.get(options.type)
    return above is not None and f"{path}.".startswith(f"{above}.")


def learners(output: str) -> list[str]:
    """The types of models that can compute what a task needs of them."""
    return [name for name, options in MODELS.items() if output in options.outputs]


def build(options: AnyModel, facts: Facts) -> Module:
    """The model for data with these facts, with freshly drawn weights. Raises `SpecError` where they do not fit."""
    return _BUILDERS[options.type](options, facts)


def without_download(options: AnyModel) -> AnyModel:
    """The same network without pretrained weights to fetch, for one whose weights come from a checkpoint."""
    return options.model_copy(update={"weights": None}) if isinstance(options, TorchvisionOptions) else options


__all__ = ["MODELS", "ModelOptions", "build", "learners", "sees_both_sides", "within", "without_download"]
