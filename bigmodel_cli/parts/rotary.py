"""Rotary positions: the angles, their scaling for longer contexts, and the rotation of heads."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, NonNegative, Options, Positive
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.parts.context import SequenceInfo


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


Scaling = Annotated[LinearScaling | NTKScaling | YarnScaling, Field(discriminator="type")]


def rotary_rates(base: float, turned: int) -> Tensor:
    """(R/2) float64   base^(-2i/R), the angle of each pair at position 1 (Su et al. 2021)."""
    return base ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)


class Rotary(Module):
    """(B, H, T, D) -> (B, H, T, D)   channels i, i + R/2 of the first R are rotated by t * rate_i.

    Su et al. 2021. The pairing is Llama's; channels after R are unchanged. `rate` (R/2) are radians
    per position; cosines and sines are multiplied by `size`. Angles are found in float64: in
    float32 that of position 100,000 is off by a hundredth.
    """

    has_table = True  # of `max_len` positions

    def __init__(self, rate: Tensor, max_len: int, size: float = 1.0) -> None:
        super().__init__()
        self.turned = turned = 2 * len(rate)
        # (T, R)
        angle = torch.outer(torch.arange(max_len, dtype=torch.float64), rate.double()).repeat(1, 2)
        sign = torch.ones(turned)
        sign[: turned // 2] = -1  # folded into the sine: the rotation needs no negation
        self.register_buffer("cos", (angle.cos() * size).float(), persistent=False)
        self.register_buffer("sin", (angle.sin() * sign * size).float(), persistent=False)

    def forward(self, x: Tensor, sequence: SequenceInfo) -> Tensor:
        """Rotate the heads by their positions."""
        length = x.shape[2]
        cos = sequence.lookup(self.cos, length).to(x.dtype)  # type: ignore[arg-type]
        sin = sequence.lookup(self.sin, length).to(x.dtype)  # type: ignore[arg-type]
        if cos.dim() == 3:  # (B, T, R): the same for every head
            cos, sin = cos[:, None], sin[:, None]
        if self.turned == x.shape[-1]:
            return torch.addcmul(x * cos, x.roll(self.turned // 2, -1), sin)
        head, rest = x[..., : self.turned], x[..., self.turned :]
        return torch.cat(
            (torch.addcmul(head * cos, head.roll(self.turned // 2, -1), sin), rest), -1
        )
