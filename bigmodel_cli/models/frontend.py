"""The frontend of an encoder of sound: frames become fewer vectors."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, DatasetInfo, Options
from bigmodel_cli.errors import OptionError
from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.roles import OUTER, Role


class ConvFrontendOptions(Options):
    """Convolutions over time with GELU, of stride 2, as in Whisper (Radford et al. 2022)."""

    type: Literal["conv"] = "conv"
    stride: Literal[1, 2, 4, 8] = Field(
        2, description="frames that become one vector; 4 is two convolutions of stride 2"
    )
    kernel: Annotated[int, Field(gt=0, le=255)] = Field(
        3, description="frames that a convolution sees; odd"
    )
    channels: Count | None = Field(
        None, description="between the convolutions; the width of the stream when left out"
    )

    @model_validator(mode="after")
    def _centred(self) -> ConvFrontendOptions:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: {self.kernel} has no middle; take an odd number")
        return self

    def build(self, width: int, dim: int) -> ConvFrontend:
        """The module for frames of `width` numbers."""
        return ConvFrontend(self, width, dim)


class ConvFrontend(Module):
    """(B, T, width), (B,) -> (B, ceil(T / stride), C)   convolutions over time.

    The first keeps the number of frames, each further one halves it. Outputs beyond a row's length
    are zero, as the frames there must be: a row gives the same alone and padded. Initialisation is
    PyTorch's default, uniform within +-1 / sqrt(inputs), as Whisper's.
    """

    def __init__(self, options: ConvFrontendOptions, width: int, dim: int) -> None:
        super().__init__()
        halvings = options.stride.bit_length() - 1
        inner = options.channels or dim
        sizes = [width, *[inner] * halvings, dim]
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, options.kernel, stride=1 if i == 0 else 2, padding=options.kernel // 2)
            for i, (a, b) in enumerate(pairwise(sizes))
        )
        self.stride = options.stride

    def weight_roles(self) -> dict[str, Role]:
        """The first convolution is the network's first layer."""
        return {"convs.0.weight": OUTER}

    def lengths(self, lengths: Tensor) -> Tensor:
        """(B,) frames -> (B,) vectors."""
        return (lengths + self.stride - 1) // self.stride

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The vectors of each row; `lengths` (B,) counts its frames, None: all of them."""
        x = frames.transpose(1, 2)  # (B, width, T)
        conv: Any
        for conv in self.convs:
            x = F.gelu(conv(x))
            if lengths is not None:
                lengths = (lengths + conv.stride[0] - 1) // conv.stride[0]
                x = x * (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None].to(
                    x.dtype
                )
        return x.transpose(1, 2)


def frames_of(
    frontend: ConvFrontendOptions | None, max_len: int | None, tokens: bool, info: DatasetInfo
) -> tuple[ConvFrontendOptions, int]:
    """(frontend, most frames) of an encoder whose options have these; `tokens`: some of tokens.

    Raises `OptionError` where model and data do not agree on what is read.
    """
    frontend = checked_frontend(frontend, info)
    if not info.outputs or tokens:
        raise OptionError(
            (
                "model",
                (
                    "token_types and vocab_size are of tokens, and the data has frames of sound"
                    " and their labels"
                ),
            )
        )
    return frontend, longest_source("model.max_len", max_len, info)


def longest_source(option: str, given: int | None, info: DatasetInfo) -> int:
    """The most frames of a row, by this option's value or the data.

    Raises `OptionError` where the data has longer ones.
    """
    length = given or info.context or 1
    if info.context is not None and length < info.context:
        raise OptionError(
            (option, f"{length} frames are fewer than the data's longest row of {info.context}")
        )
    return length


def checked_frontend(
    frontend: ConvFrontendOptions | None, info: DatasetInfo
) -> ConvFrontendOptions:
    """The frontend. Raises `OptionError` where there is none, or the data has no frames."""
    if info.frame_width is None:
        raise OptionError(
            ("model.frontend", "it reads frames of sound, and the data has none; leave it out")
        )
    if frontend is None:
        raise OptionError(
            (
                "model.frontend",
                "missing; the data has frames of sound: frontend: {type: conv, stride: 4}",
            )
        )
    return frontend
