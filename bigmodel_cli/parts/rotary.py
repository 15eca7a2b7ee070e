"""Rotary positions: the angles, their scaling for longer contexts, and the rotation of heads."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, NonNegative, Options, Positive
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.context import SequenceInfo, recorded


class _Scaling(Options):
    factor: Positive = Field(description="how many times longer than trained")

    def rates(self, rate: Tensor, base: float) -> tuple[Tensor, float]:
        """Scaled angles per position (R/2) from the plain ones, and a factor on cosines and sines.

        Raises `ValueError` for too few pairs.
        """
        raise NotImplementedError

    def of_scores(self) -> float:
        """Further factor on the scores of heads that are only partially rotated (MLA)."""
        return 1.0


class LinearScaling(_Scaling):
    """Position interpolation (Chen et al. 2023): every angle is divided by the factor."""

    type: Literal["linear"] = "linear"

    def rates(self, rate: Tensor, base: float) -> tuple[Tensor, float]:
        """All divided."""
        return rate / self.factor, 1.0


class NTKScaling(_Scaling):
    """NTK-aware scaling (bloc97 2023): a larger base.

    Fast angles stay, and the slowest is divided by the factor.
    """

    type: Literal["ntk"] = "ntk"

    def rates(self, rate: Tensor, base: float) -> tuple[Tensor, float]:
        """Those of the larger base.

        Raises `ValueError` for one pair, which is the fastest and the slowest at once.
        """
        turned = 2 * len(rate)
        if turned < 4:
            raise ValueError(
                "position.scaling: ntk keeps the fastest pair of channels and slows down the"
                " slowest, and there is one pair alone; turn more channels, or take linear"
            )
        return rotary_rates(base * self.factor ** (turned / (turned - 2)), turned), 1.0


class YarnScaling(_Scaling):
    """YaRN (Peng et al. 2023): fast angles stay, slow ones are divided by the factor.

    Attention is made sharper: cosines and sines are multiplied by m(`mscale`) /
    m(`mscale_all_dim`), m(a) = 0.1 a ln(factor) + 1, and the scores of MLA, whose heads are
    partially rotated, by m(`mscale_all_dim`)^2 (DeepSeek-V2 2024).
    """

    type: Literal["yarn"] = "yarn"
    trained: Count = Field(
        examples=[4096], description="the length that the model was trained with"
    )
    fast: Positive = Field(
        32.0, description="turns within the trained length from which on an angle stays"
    )
    slow: Positive = Field(1.0, description="turns up to which it is divided by the factor")
    truncate: bool = Field(
        True, description="the two bounds are rounded to whole pairs (gpt-oss: false)"
    )
    mscale: NonNegative = Field(
        1.0, description="sharpness by cosines and sines, of the turned channels"
    )
    mscale_all_dim: NonNegative = Field(
        0.0,
        description=(
            "what of it is left to the scale of the scores, of all channels: in mla"
            " (DeepSeek-V3: 1)"
        ),
    )
    attention_factor: Positive | None = Field(
        None, description="what cosines and sines are multiplied by; left out: found from mscale"
    )

    @model_validator(mode="after")
    def _ordered(self) -> YarnScaling:
        if self.slow >= self.fast:
            raise ValueError(f"slow: {self.slow:g} turns are not fewer than fast, {self.fast:g}")
        if self.trained <= 2 * math.pi * self.slow:
            raise ValueError(
                f"trained: within {self.trained} positions the fastest angle makes less than slow"
                " turns"
            )
        return self

    def rates(self, rate: Tensor, base: float) -> tuple[Tensor, float]:
        """A linear ramp over the pairs, between angles that stay and angles that are divided."""
        turned = 2 * len(rate)

        def pair(turns: float) -> float:  # the (fractional) pair that makes that many turns
            return turned * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = pair(self.fast), pair(self.slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, turned - 1)
        ramp = ((torch.arange(len(rate), dtype=rate.dtype) - low) / max(high - low, 1e-3)).clamp(
            0, 1
        )
        size = self.attention_factor or self.sharpness(self.mscale) / self.sharpness(
            self.mscale_all_dim
        )
        return rate / self.factor * ramp + rate * (1 - ramp), size

    def of_scores(self) -> float:
        """m(`mscale_all_dim`)^2: queries and keys each have a factor of their own."""
        return self.sharpness(self.mscale_all_dim) ** 2

    def sharpness(self, mscale: float) -> float:
        """m(mscale) of the paper, section 3.4; 1 where nothing is stretched."""
        return 0.1 * mscale * math.log(self.factor) + 1 if self.factor > 1 else 1.0


class Llama3Scaling(_Scaling):
    """Llama 3.1's (Grattafiori et al. 2024, by parts as in YaRN): fast angles stay, slow ones are
    divided.

    Fast are those that turn at least `high_freq_factor` times within the trained length, slow those
    that turn less than `low_freq_factor` times; between them the divisor changes linearly with the
    number of turns.
    """

    type: Literal["llama3"] = "llama3"
    trained: Count = Field(
        examples=[8192], description="the length that the model was trained with before"
    )
    low_freq_factor: Positive = Field(
        1.0, description="turns within the trained length up to which an angle is divided"
    )
    high_freq_factor: Positive = Field(4.0, description="turns from which on it stays")

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Scaling:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor: {self.low_freq_factor:g} turns are not fewer than"
                f" high_freq_factor, {self.high_freq_factor:g}"
            )
        return self

    def rates(self, rate: Tensor, base: float) -> tuple[Tensor, float]:
        """Between the divided angle and the plain one, by the turns of each."""
        turns = rate * self.trained / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        stays = ((turns - low) / (high - low)).clamp(0, 1)
        return rate / self.factor * (1 - stays) + rate * stays, 1.0


Scaling = Annotated[
    LinearScaling | NTKScaling | YarnScaling | Llama3Scaling, Field(discriminator="type")
]

AT_ONCE = 1 << 20
"""Numbers of a rotary table that are computed when it is built."""


def rotary_rates(base: float, turned: int) -> Tensor:
    """(R/2) float64   base^(-2i/R), the angle of each pair at position 1 (Su et al. 2021)."""
    return base ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)


class Rotary(Module):
    """(B, H, T, D) -> (B, H, T, D)   channels i, i + R/2 of the first R are rotated by t * rate_i.

    Su et al. 2021. The pairing is Llama's; channels after R are unchanged. `rate` (R/2) are radians
    per position; cosines and sines are multiplied by `size`. Angles are found in float64: in
    float32 that of position 100,000 is off by a hundredth.

    The table begins with `AT_ONCE` numbers and grows to the positions that are asked for, `max_len`
    at most: a model for 131,072 positions that reads short texts needs no table of 131,072.
    """

    has_table = True  # of `max_len` positions
    context_fault = ""
    cos: Tensor
    sin: Tensor

    def __init__(self, rate: Tensor, max_len: int, size: float = 1.0) -> None:
        super().__init__()
        self.turned = 2 * len(rate)
        self.rate, self.size, self.max_len = rate.double(), size, max_len
        # What the table may grow to: refused now where the memory at hand cannot hold it.
        torch.empty(2, max_len, self.turned)
        for name, table in self.table(min(max_len, max(1, AT_ONCE // self.turned))).items():
            self.register_buffer(name, table, persistent=False)

    def table(self, length: int) -> dict[str, Tensor]:
        """Cosines and sines (length, R)."""
        place = torch.arange(length, dtype=torch.float64, device=self.rate.device)
        angle = torch.outer(place, self.rate)  # (T, R/2)
        cos, sin = ((wave * self.size).float() for wave in (angle.cos(), angle.sin()))
        # The rotation needs no negation: it is folded into the sine.
        return {"cos": cos.repeat(1, 2), "sin": torch.cat((-sin, sin), 1)}

    def grow(self, length: int) -> None:
        """Compute the table for that many positions, twice as many as before at least."""
        length = min(self.max_len, max(length, 2 * len(self.cos)))
        with torch.inference_mode(False):  # training may use the table later
            for name, table in self.table(length).items():
                setattr(self, name, table.to(self.get_buffer(name)))

    def forward(self, x: Tensor, sequence: SequenceInfo) -> Tensor:
        """Rotate the heads by their positions."""
        length = x.shape[2]
        if not recorded() and sequence.end(length) > len(self.cos):
            grow = self.grow
            if torch.compiler.is_compiling():  # a graph does not see what it changes of a module
                grow = torch.compiler.disable(grow)
            grow(sequence.end(length))
        cos = sequence.lookup(self.cos, length).to(x.dtype)
        sin = sequence.lookup(self.sin, length).to(x.dtype)
        if cos.dim() == 3:  # (B, T, R): the same for every head
            cos, sin = cos[:, None], sin[:, None]
        return rotated(x, cos, sin)


class AxialRotary(Module):
    """(B, H, T, D) -> (B, H, T, D)   each patch turned by the row and the column of its centre.

    DINOv3 (Siméoni et al. 2025). Of the D/2 pairs (i, i + D/2) the first half turns by the row, the
    second by the column; `rate` (D/4) are radians per distance of 1, where the image spans -1 to 1.
    `first` tokens come before the patches; they are not turned, nor are those after the patches.
    """

    def __init__(self, rate: Tensor, grid: tuple[int, int], first: int, length: int) -> None:
        super().__init__()
        centres = [(2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in grid]
        places = torch.meshgrid(*centres, indexing="ij")
        of_patches = torch.cat([torch.outer(axis.flatten(), rate) for axis in places], 1)
        angle = torch.zeros(length, of_patches.shape[1], dtype=torch.float64)  # (T, D/2)
        angle[first : first + len(of_patches)] = of_patches
        cos, sin = angle.cos().float(), angle.sin().float()
        self.register_buffer("cos", cos.repeat(1, 2), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), 1), persistent=False)

    def forward(self, x: Tensor, sequence: SequenceInfo) -> Tensor:
        """Rotate the heads of a whole image."""
        cos, sin = self.get_buffer("cos").to(x.dtype), self.get_buffer("sin").to(x.dtype)
        return rotated(x, cos, sin)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, T, D)   the first R channels of x turned, (i, i + R/2) by pairs."""
    turned = cos.shape[-1]
    if turned == x.shape[-1]:
        return torch.addcmul(x * cos, x.roll(turned // 2, -1), sin)
    head, rest = x[..., :turned], x[..., turned:]
    return torch.cat((torch.addcmul(head * cos, head.roll(turned // 2, -1), sin), rest), -1)
