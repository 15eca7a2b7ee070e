"""Positions: added to embeddings, applied to queries and keys, or added to attention scores."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from bigmodel_cli.config import Count, Fraction, Options, Table
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyPositionOptions
from bigmodel_cli.parts.rotary import AxialRotary, Rotary, Scaling, rotary_rates
from bigmodel_cli.parts.score_bias import Alibi, T5Bias
from bigmodel_cli.roles import GAIN, Role


class HeadPositionOptions(Options):
    """Options of positions within attention: rotary queries and keys, or a bias of the scores."""

    def turning(self, head_dim: int, layer: LayerContext) -> Rotary | AxialRotary | None:
        """What turns queries and keys of width `head_dim`, if anything; layers share it."""
        return None

    def bias(self, heads: int, causal: bool) -> Alibi | T5Bias | None:
        """The score bias for `heads` heads, if any."""
        return None

    def scoring(self, heads: int, causal: bool, layer: LayerContext) -> Alibi | T5Bias | None:
        """The same for a layer, which may share it with others."""
        return self.bias(heads, causal)


class NoPositionOptions(HeadPositionOptions, AnyPositionOptions):
    """Nothing is added to the embeddings (attention may still be rotary)."""

    type: Literal["none"] = "none"

    def build(self, dim: int, max_len: int) -> None:
        """Nothing to build."""


class LearnedOptions(AnyPositionOptions):
    """A learned vector for each position, as in GPT-2 and BERT."""

    type: Literal["learned"] = "learned"
    first: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="row of the first position; those before it are not used (RoBERTa: 2)"
    )

    def build(self, dim: int, max_len: int) -> LearnedPosition:
        """The module for positions 0 to max_len - 1."""
        return LearnedPosition(dim, max_len, self.first)


class SinusoidalOptions(AnyPositionOptions):
    """Sines and cosines at geometric wavelengths (Vaswani et al. 2017, section 3.5)."""

    type: Literal["sinusoidal"] = "sinusoidal"
    layout: Literal["interleaved", "halves"] = Field(
        "interleaved",
        description="sine and cosine by turns, as in the paper; or all sines first, as in Marian",
    )
    slowest: Literal["within", "last"] = Field(
        "within",
        description=(
            "the pair that turns slowest does so at 10000^-(1 - 2 / C), as in the paper; or last:"
            " at 1 / 10000, as in its code and in Whisper"
        ),
    )
    stored: bool = Field(
        False,
        description=(
            "keep the table among the weights, as Whisper does: its numbers may be rounded ones"
        ),
    )

    def build(self, dim: int, max_len: int) -> SinusoidalPosition:
        """The module for positions 0 to max_len - 1."""
        return SinusoidalPosition(self, dim, max_len)


class RotaryOptions(HeadPositionOptions):
    """Rotary position embedding, RoPE (Su et al. 2021), of queries and keys."""

    type: Literal["rotary"] = "rotary"
    base: Annotated[float, Field(gt=1, le=1e12)] = Field(
        10000.0, description="the longest wavelength is 2 pi x base"
    )
    fraction: Fraction = Field(
        1.0, description="of each head's channels that are turned (GPT-NeoX: 0.25)"
    )
    scaling: Scaling | None = Field(
        None, description="for contexts longer than trained: linear, ntk, yarn, llama3"
    )

    def turning(self, head_dim: int, layer: LayerContext) -> Rotary:
        """The module that layers of this width share.

        Raises `ValueError` where the number of rotated channels is odd.
        """
        return layer.shared((self, head_dim), lambda: self.rotary(head_dim, layer.max_len))

    def rotary(self, head_dim: int, max_len: int) -> Rotary:
        """The module for heads of width `head_dim`.

        Raises `ValueError` where the number of rotated channels is odd.
        """
        # As GPT-NeoX, but for rounding errors (0.29 x 100).
        turned = math.floor(self.fraction * head_dim + 1e-6)
        if turned % 2 or not turned:
            raise ValueError(
                f"position: rotary turns pairs of channels, and {turned} of {head_dim} are to be"
                " turned"
            )
        rate, size = rotary_rates(self.base, turned), 1.0
        if self.scaling is not None:
            rate, size = self.scaling.rates(rate, self.base)
        return Rotary(rate, max_len, size)

    def of_scores(self) -> float:
        """Factor on the scores of heads that are only partially rotated (MLA)."""
        return self.scaling.of_scores() if self.scaling is not None else 1.0


class AxialOptions(HeadPositionOptions):
    """Rotary positions in two dimensions, of the patches of an image (DINOv3 2025).

    Half of the pairs of channels turn with the row of a patch, half with its column. The centres of
    the patches span -1 to 1 along each axis, whatever the size of the image. Class token and
    registers are not turned.
    """

    type: Literal["axial"] = "axial"
    base: Annotated[float, Field(gt=1, le=1e12)] = Field(
        100.0, description="the fastest pair turns once in a distance of 1, the slowest 1 / base"
    )

    def turning(self, head_dim: int, layer: LayerContext) -> AxialRotary:
        """The module that layers of this width share.

        Raises `ValueError` where x is not an image, and where 4 does not divide the heads' width.
        """
        grid = layer.grid
        if grid is None:
            raise ValueError(
                "position: axial needs a grid of patches, which model.type: vit has (without"
                " reconstruct); take rotary"
            )
        if head_dim % 4:
            raise ValueError(
                f"position: axial turns pairs of channels along two axes, and {head_dim} is not a"
                " multiple of 4"
            )
        rate = 2 * math.pi * rotary_rates(self.base, head_dim // 2)
        return layer.shared(
            (self, head_dim), lambda: AxialRotary(rate, grid, layer.first, layer.max_len)
        )


class AlibiOptions(HeadPositionOptions):
    """ALiBi (Press et al. 2022): a penalty on the score that grows with the distance."""

    type: Literal["alibi"] = "alibi"

    def bias(self, heads: int, causal: bool) -> Alibi:
        """The module for `heads` heads."""
        return Alibi(heads)


class T5Options(HeadPositionOptions):
    """T5's relative positions (Raffel et al. 2020): a learned score per head and distance."""

    type: Literal["t5"] = "t5"
    buckets: Count = Field(
        32, description="distances that are told apart; where both sides are seen, half for each"
    )
    max_distance: Count = Field(128, description="from here on all distances share a bucket")
    shared: bool = Field(False, description="one table for all blocks of a stack, as in T5 itself")

    def bias(self, heads: int, causal: bool) -> T5Bias:
        """The module for `heads` heads.

        Raises `ValueError` for too few buckets, or a `max_distance` within the exact ones.
        """
        least = 2 if causal else 4
        if self.buckets < least:
            sides = "one side is" if causal else "both sides are"
            raise ValueError(
                f"position.buckets: {self.buckets}, and where {sides} seen at least {least} are"
                " needed"
            )
        exact = self.buckets // least
        if self.max_distance <= exact:
            raise ValueError(
                f"position.max_distance: {self.max_distance}, and of {self.buckets} buckets {exact}"
                f" are for distances below {exact} one by one; make it larger, or buckets fewer"
            )
        return T5Bias(self.buckets, self.max_distance, heads, causal)

    def scoring(self, heads: int, causal: bool, layer: LayerContext) -> T5Bias:
        """The module, which layers with the same options and heads share where they are to."""
        if not self.shared:
            return self.bias(heads, causal)
        return layer.shared((self, heads, causal), lambda: self.bias(heads, causal))


HEAD_POSITIONS = Table(
    "attention_position",
    HeadPositionOptions,
    NoPositionOptions,
    RotaryOptions,
    AxialOptions,
    AlibiOptions,
    T5Options,
)


HeadPosition = Annotated[HeadPositionOptions, HEAD_POSITIONS]


class LearnedPosition(Module):
    """(B, T, C) -> (B, T, C)   x + table[positions] (Gehring et al. 2017; GPT-2)."""

    has_table = True  # of `max_len` positions
    context_fault = ""

    def __init__(self, dim: int, max_len: int, first: int = 0) -> None:
        super().__init__()
        self.first = first
        self.table = nn.Embedding(first + max_len, dim)

    def weight_roles(self) -> dict[str, Role]:
        """Position tables have no weight decay."""
        return {"table.weight": GAIN}

    def forward(self, x: Tensor, sequence: SequenceInfo) -> Tensor:
        """Add each position's vector."""
        return x + sequence.lookup(self.table.weight[self.first :], x.shape[1])


class SinusoidalPosition(Module):
    """(B, T, C) -> (B, T, C)   x + [sin(t / 10000^(2i/C)), cos(t / 10000^(2i/C))]."""

    has_table = True  # of `max_len` positions
    context_fault = ""

    def __init__(self, options: SinusoidalOptions, dim: int, max_len: int) -> None:
        super().__init__()
        position = torch.arange(max_len, dtype=torch.float32)[:, None]  # (T, 1)
        span = dim if options.slowest == "within" else max(1, 2 * ((dim + 1) // 2) - 2)
        rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000.0) / span))
        waves = ((position * rate).sin(), (position * rate).cos())
        interleaved = options.layout == "interleaved"
        table = torch.stack(waves, -1).flatten(1) if interleaved else torch.cat(waves, -1)
        self.register_buffer("table", table[:, :dim], persistent=options.stored)  # (T, C)

    def forward(self, x: Tensor, sequence: SequenceInfo) -> Tensor:
        """Add each position's sines and cosines."""
        return x + sequence.lookup(self.get_buffer("table"), x.shape[1]).to(x.dtype)
