"""Models: skeletons built of parts, and networks of their own kind.

One file per model, one name in the table.
"""

from __future__ import annotations

from typing import Annotated

from bigmodel_cli.config import DatasetInfo, Table
from bigmodel_cli.models.base import AnyModelOptions, Generator, Model
from bigmodel_cli.models.cnn import CNNOptions
from bigmodel_cli.models.decoder import DecoderOptions
from bigmodel_cli.models.encoder import EncoderOptions
from bigmodel_cli.models.seq2seq import Seq2SeqOptions
from bigmodel_cli.models.torchvision import TorchvisionOptions
from bigmodel_cli.models.vit import ViTOptions
from bigmodel_cli.models.within import within

MODELS = Table(
    "model",
    AnyModelOptions,
    DecoderOptions,
    EncoderOptions,
    Seq2SeqOptions,
    ViTOptions,
    CNNOptions,
    TorchvisionOptions,
)
ModelOptions = Annotated[AnyModelOptions, MODELS]


def sees_both_sides(options: AnyModelOptions, path: str) -> bool:
    """Whether a part at this path of the spec is where positions see all others (not causal)."""
    return options.two_sided is not None and f"{path}.".startswith(f"{options.two_sided}.")


def learners(output: str) -> list[str]:
    """The model types that can compute this output."""
    return [name for name, options in MODELS.items() if output in options.outputs]


def build(options: AnyModelOptions, info: DatasetInfo) -> Model:
    """The model for data as `info` describes it, with freshly drawn weights.

    Raises `SpecError` where they do not fit.
    """
    return options.build(info)


__all__ = [
    "MODELS",
    "Generator",
    "Model",
    "ModelOptions",
    "build",
    "learners",
    "sees_both_sides",
    "within",
]
