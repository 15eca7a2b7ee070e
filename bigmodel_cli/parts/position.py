"""Where a token stands: added to its embedding, turned into queries and keys, or added to the scores of attention."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Fraction, NonNegative, Options, Positive
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parts.stream import Stream
from bigmodel_cli.roles import GAIN, Role


class HeadPositionOptions(Options):
    """Options of what tells positions apart within attention: queries and keys are turned, or something is added to the scores."""

    def rotary(self, head_dim: int, max_len: int) -> Rotary | None:
        """What turns heads of width `head_dim`."""
        return None

    def bias(self, heads: int, causal: bool) -> Alibi | T5Bias | None:
        """What is added to the scores of so many heads."""
        return None


class NoPositionOptions(HeadPositionOptions):
    """Nothing is added to the embeddings (attention may still be rotary)."""

    type: Literal["none"] = "none"

    def build(self, dim: int, max_len: int) -> None:
        """Nothing to build."""


class LearnedOptions(Options):
    """A learned vector for each position, as in GPT-2 and BERT."""

    type: Literal["learned"] = "learned"

    def build(self, dim: int, max_len: int) -> LearnedPosition:
        """The module for positions 0 to max_len - 1."""
        return LearnedPosition(dim, max_len)


class SinusoidalOptions(Options):
    """Sines and cosines of the position at geometric wavelengths (Vaswani et al. 2017, section 3.5)."""

    type: Literal["sinusoidal"] = "sinusoidal"
    layout: Literal["interleaved", "halves"] = Field(
        "interleaved", description="sine and cosine by turns, as in the paper; or all sines first, as in Marian"
    )

    def build(self, dim: int, max_len: int) -> SinusoidalPosition:
        """The module for positions 0 to max_len - 1."""
        return SinusoidalPosition(dim, max_len, self.layout)


class _Scaling(Options):
    factor: Positive = Field(description="how many times longer than trained")

    def rates(self, rate: Tensor, base: float) -> tuple[Tensor, float]:
        """Angles per position (R/2) of so many pairs, from the plain ones, and what cosines and sines are multiplied by.

        Raises `ValueError` where the number of pairs is not enough.
        """
        raise NotImplementedError

    def of_scores(self) -> float:
        """What scores of heads that are not turned as a whole (MLA) are multiplied by, beside that."""
        return 1.0


class LinearScaling(_Scaling):
    """Position interpolation (Chen et al. 2023): every angle is divided by the factor."""

    type: Literal["linear"] = "linear"

    def rates(self, rate: Tensor, base: float) -> tuple[Tensor, float]:
        """All divided."""
        return rate / self.factor, 1.0


class NTKScaling(_Scaling):
    """NTK-aware scaling (bloc97 2023): a larger base, so that fast angles stay and the slowest is divided by the factor."""

    type: Literal["ntk"] = "ntk"

    def rates(self, rate: Tensor, base: float) -> tuple[Tensor, float]:
        """Those of the larger base. Raises `ValueError` for one pair, which is the fastest and the slowest at once."""
        turned = 2 * len(rate)
        if turned < 4:
            raise ValueError(
                "position.scaling: ntk keeps the fastest pair of channels and slows down the slowest, and there is one pair alone; "
                "turn more channels, or take linear"
            )
        return rotary_rates(base * self.factor ** (turned / (turned - 2)), turned), 1.0


class YarnScaling(_Scaling):
    """YaRN (Peng et al. 2023): angles that turn often within the trained length stay, slow ones are divided by the factor.

    Attention is made sharper: cosines and sines are multiplied by m(`mscale`) / m(`mscale_all_dim`), m(a) = 0.1 a ln(factor)
    + 1, and the scores of MLA, where a part of each head is turned, by m(`mscale_all_dim`)^2 (DeepSeek-V2 2024).
    """

    type: Literal["yarn"] = "yarn"
    trained: Count = Field(examples=[4096], description="the length that the model was trained with")
    fast: Positive = Field(32.0, description="turns within the trained length from which on an angle stays")
    slow: Positive = Field(1.0, description="turns up to which it is divided by the factor")
    truncate: bool = Field(True, description="the two bounds are rounded to whole pairs (gpt-oss: false)")
    mscale: NonNegative = Field(1.0, description="sharpness by cosines and sines, of the turned channels")
    mscale_all_dim: NonNegative = Field(
        0.0, description="what of it is left to the scale of the scores, of all channels: in mla (DeepSeek-V3: 1)"
    )
    attention_factor: Positive | None = Field(
        None, description="what cosines and sines are multiplied by; left out: found from mscale"
    )

    @model_validator(mode="after")
    def _ordered(self) -> YarnScaling:
        if self.slow >= self.fast:
            raise ValueError(f"slow: {self.slow:g} turns are not fewer than fast, {self.fast:g}")
        if self.trained <= 2 * math.pi * self.slow:
            raise ValueError(f"trained: within {self.trained} positions the fastest angle makes less than slow turns")
        return self

    def rates(self, rate: Tensor, base: float) -> tuple[Tensor, float]:
        """Between those that stay and those that are divided the mean changes linearly with the number of the pair."""
        turned = 2 * len(rate)

        def pair(turns: float) -> float:  # the pair of channels that makes so many turns
            return turned * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = pair(self.fast), pair(self.slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, turned - 1)
        ramp = ((torch.arange(len(rate), dtype=rate.dtype) - low) / max(high - low, 1e-3)).clamp(0, 1)
        size = self.attention_factor or self.sharpness(self.mscale) / self.sharpness(self.mscale_all_dim)
        return rate / self.factor * ramp + rate * (1 - ramp), size

    def of_scores(self) -> float:
        """m(`mscale_all_dim`)^2: queries and keys each have a factor of their own."""
        return self.sharpness(self.mscale_all_dim) ** 2

    def sharpness(self, mscale: float) -> float:
        """m(mscale) of the paper, section 3.4; 1 where nothing is stretched."""
        return 0.1 * mscale * math.log(self.factor) + 1 if self.factor > 1 else 1.0


Scaling = Annotated[LinearScaling | NTKScaling | YarnScaling, Field(discriminator="type")]


class RotaryOptions(HeadPositionOptions):
    """Rotary position embedding (Su et al. 2021): queries and keys are turned by an angle that grows with the position."""

    type: Literal["rotary"] = "rotary"
    base: Annotated[float, Field(gt=1, le=1e12)] = Field(10000.0, description="the longest wavelength is 2 pi x base")
    fraction: Fraction = Field(1.0, description="of each head's channels that are turned (GPT-NeoX: 0.25)")
    scaling: Scaling | None = Field(None, description="for contexts longer than trained: linear, ntk, yarn")

    def rotary(self, head_dim: int, max_len: int) -> Rotary:
        """The module for heads of width `head_dim`. Raises `ValueError` where the turned channels are not even."""
        turned = math.floor(self.fraction * head_dim + 1e-6)  # as GPT-NeoX, but for errors of rounding (0.29 x 100)
        if turned % 2 or not turned:
            raise ValueError(f"position: rotary turns pairs of channels, and {turned} of {head_dim} are to be turned")
        rate, size = rotary_rates(self.base, turned), 1.0
        if self.scaling is not None:
            rate, size = self.scaling.rates(rate, self.base)
        return Rotary(rate, max_len, size)

    def of_scores(self) -> float:
        """What the scores of heads that are not turned as a whole (MLA) are multiplied by."""
        return self.scaling.of_scores() if self.scaling is not None else 1.0


class AlibiOptions(HeadPositionOptions):
    """ALiBi (Press et al. 2022): a penalty on the score that grows with the distance, steeper for some heads."""

    type: Literal["alibi"] = "alibi"

    def bias(self, heads: int, causal: bool) -> Alibi:
        """The module for so many heads."""
        return Alibi(heads)


class T5Options(HeadPositionOptions):
    """T5's relative positions (Raffel et al. 2020): a learned score per head for each bucket of distances."""

    type: Literal["t5"] = "t5"
    buckets: Count = Field(32, description="distances that are told apart; where both sides are seen, half for each")
    max_distance: Count = Field(128, description="from here on all distances share a bucket")

    def bias(self, heads: int, causal: bool) -> T5Bias:
        """The module for so many heads. Raises `ValueError` for too few buckets, or a distance that they reach one by one."""
        least = 2 if causal else 4
        if self.buckets < least:
            sides = "one side is" if causal else "both sides are"
            raise ValueError(f"position.buckets: {self.buckets}, and where {sides} seen at least {least} are needed")
        exact = self.buckets // least
        if self.max_distance <= exact:
            raise ValueError(
                f"position.max_distance: {self.max_distance}, and of {self.buckets} buckets {exact} are for distances below "
                f"{exact} one by one; make it larger, or buckets fewer"
            )
        return T5Bias(self, heads, causal)


class LearnedPosition(Module):
    """(B, T, C) -> (B, T, C)   x + table[positions] (Gehring et al. 2017; GPT-2)."""

    has_table = True  # of `max_len` positions

    def __init__(self, dim: int, max_len: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_len, dim)

    def weight_roles(self) -> dict[str, Role]:
        """Positions do not decay."""
        return {"table.weight": GAIN}

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """Add each position's vector."""
        return x + stream.rows(self.table.weight, x.shape[1])


class SinusoidalPosition(Module):
    """(B, T, C) -> (B, T, C)   x + [sin(t / 10000^(2i/C)), cos(t / 10000^(2i/C))] (Vaswani et al. 2017)."""

    has_table = True  # of `max_len` positions

    def __init__(self, dim: int, max_len: int, layout: str = "interleaved") -> None:
        super().__init__()
        position = torch.arange(max_len, dtype=torch.float32)[:, None]  # (T, 1)
        rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000.0) / dim))
        waves = ((position * rate).sin(), (position * rate).cos())
        table = torch.stack(waves, dim=-1).flatten(1) if layout == "interleaved" else torch.cat(waves, dim=-1)
        self.register_buffer("table", table[:, :dim], persistent=False)  # (T, C)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """Add each position's waves."""
        table: Tensor = self.table  # type: ignore[assignment]
        return x + stream.rows(table, x.shape[1]).to(x.dtype)


def rotary_rates(base: float, turned: int) -> Tensor:
    """(R/2) float64   base^(-2i/R), the angle of each pair at position 1 (Su et al. 2021, section 3.2.2)."""
    return base ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)


class Rotary(Module):
    """(B, H, T, D) -> (B, H, T, D)   pairs (i, i + R/2) of the first R channels turned by t * rate_i (Su et al. 2021).

    The pairing is Llama's; the channels after R are left alone. `rate` (R/2) are radians per position; cosines and sines are
    multiplied by `size`. Angles are found in float64: in float32 that of position 100,000 is off by a hundredth.
    """

    has_table = True  # of `max_len` positions

    def __init__(self, rate: Tensor, max_len: int, size: float = 1.0) -> None:
        super().__init__()
        self.turned = turned = 2 * len(rate)
        angle = torch.outer(torch.arange(max_len, dtype=torch.float64), rate.double()).repeat(1, 2)  # (T, R)
        sign = torch.ones(turned)
        sign[: turned // 2] = -1  # folded into the sine: turning needs no negation
        self.register_buffer("cos", (angle.cos() * size).float(), persistent=False)
        self.register_buffer("sin", (angle.sin() * sign * size).float(), persistent=False)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """Turn the heads by their positions."""
        length = x.shape[2]
        cos = stream.rows(self.cos, length).to(x.dtype)  # type: ignore[arg-type]
        sin = stream.rows(self.sin, length).to(x.dtype)  # type: ignore[arg-type]
        if cos.dim() == 3:  # (B, T, R): the same for every head
            cos, sin = cos[:, None], sin[:, None]
        if self.turned == x.shape[-1]:
            return torch.addcmul(x * cos, x.roll(self.turned // 2, -1), sin)
        head, rest = x[..., : self.turned], x[..., self.turned :]
        return torch.cat((torch.addcmul(head * cos, head.roll(self.turned // 2, -1), sin), rest), -1)


class Alibi(Module):
    """(H, T, S)   -slope_h * |i - j|, slopes 2^(-8/H), 2^(-16/H), ... (Press et al. 2022)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def forward(self, queries: int, keys: int) -> Tensor:
        """What is added to the scores; the last query is at the last key."""
        slopes: Tensor = self.slopes  # type: ignore[assignment]
        return -slopes[:, None, None] * distances(queries, keys, slopes.device).abs()


def alibi_slopes(heads: int) -> list[float]:
    """The paper's slopes; for a number of heads that is no power of two, every second one of twice the power fills up."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]


class T5Bias(Module):
    """(H, T, S)   a learned score for the bucket of j - i: half of the buckets exact, the rest logarithmic (Raffel et al. 2020)."""

    def __init__(self, options: T5Options, heads: int, causal: bool) -> None:
        super().__init__()
        self.options, self.causal = options, causal
        self.table = nn.Embedding(options.buckets, heads)

    def weight_roles(self) -> dict[str, Role]:
        """Scores of distances are biases."""
        return {"table.weight": GAIN}

    def forward(self, queries: int, keys: int) -> Tensor:
        """What is added to the scores; the last query is at the last key."""
        back = distances(queries, keys, self.table.weight.device)
        bias: Tensor = self.table(self.bucket(back))  # (T, S, H)
        return bias.permute(2, 0, 1)

    def bucket(self, back: Tensor) -> Tensor:
        """The bucket of a key that stands so many positions before the query."""
        buckets, offset = self.options.buckets, torch.zeros_like(back)
        if not self.causal:  # the upper half is for keys that follow
            buckets //= 2
            offset, back = (back < 0) * buckets, back.abs()
        back = back.clamp(min=0)
        exact = buckets // 2
        spread = math.log(self.options.max_distance / exact)
        far = exact + ((back.clamp(min=1) / exact).log() / spread * (buckets - exact)).long()
        return offset + torch.where(back < exact, back, far.clamp(max=buckets - 1))


def distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """(T, S)   i - j for queries aligned with the last keys."""
    return torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)


def sines_of_grid(grid: tuple[int, int], dim: int, first: int) -> Tensor:
    """(F + rows x columns, C)   sines and cosines of column, then of row, half the channels each; zeros for F tokens before.

    He et al. 2022: rates are 10000^(-4i/C) for i below C/4. Raises `ValueError` where 4 does not divide C.
    """
    if dim % 4:
        raise ValueError(f"dim: {dim} is not a multiple of 4, which positions in two dimensions need")
    rate = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * rate for axis in (column, row)]  # (N, C / 4) each
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)
    return torch.cat((table.new_zeros(first, dim), table)).float()
