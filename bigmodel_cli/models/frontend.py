"""The frontend of an encoder of sound: frames become fewer vectors."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Options
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
