"""Where a token stands: added to its embedding, turned into queries and keys, or added to the scores of attention."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from bigmodel_cli.config import Count, Fraction, Options, Positive
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parts.stream import Stream
from bigmodel_cli.roles import GAIN, Role


class NoPositionOptions(Options):
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


class LinearScaling(Options):
    """Position interpolation (Chen et al. 2023): every angle is divided by the factor."""

    type: Literal["linear"] = "linear"
    factor: Positive = Field(description="how many times longer than trained")

    def rates(self, rate: Tensor, dim: int, base: float) -> tuple[Tensor, float]:
        """(angle per position, what cosines and sines are multiplied by)."""
        return rate / self.factor, 1.0


class NTKScaling(Options):
    """NTK-aware scaling (bloc97 2023): a larger base, so that fast angles stay and the slowest is divided by the factor."""

    type: Literal["ntk"] = "ntk"
    factor: Positive = Field(description="how many times longer than trained")

    def rates(self, rate: Tensor, dim: int, base: float) -> tuple[Tensor, float]:
        """(angle per position, what cosines and sines are multiplied by)."""
        return (base * self.factor ** (dim / (dim - 2))) ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim), 1.0


class YarnScaling(Options):
    """YaRN (Peng et al. 2023): angles that turn often within the trained length stay, slow ones are divided by the factor."""

    type: Literal["yarn"] = "yarn"
    factor: Positive = Field(description="how many times longer than trained")
    trained: Count = Field(description="the length that the model was trained with")
    fast: Positive = Field(32.0, description="turns within the trained length from which on an angle stays")
    slow: Positive = Field(1.0, description="turns up to which it is divided by the factor")

    def rates(self, rate: Tensor, dim: int, base: float) -> tuple[Tensor, float]:
        """(angle per position, what cosines and sines are multiplied by: 0.1 ln(factor) + 1)."""

        def pair(turns: float) -> float:  # the pair of channels that makes so many turns
            return dim * math.log(self.trained / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(math.floor(pair(self.fast)), 0), min(math.ceil(pair(self.slow)), dim - 1)
        ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 1e-3)).clamp(0, 1)
        return rate / self.factor * ramp + rate * (1 - ramp), 0.1 * math.log(
            self.factor
        ) + 1 if self.factor > 1 else 1.0


Scaling = Annotated[LinearScaling | NTKScaling | YarnScaling, Field(discriminator="type")]


class RotaryOptions(Options):
    """Rotary position embedding (Su et al. 2021): queries and keys are turned by an angle that grows with the position."""

    type: Literal["rotary"] = "rotary"
    base: Positive = Field(10000.0, description="the longest wavelength is 2 pi x base")
    fraction: Fraction = Field(1.0, description="of each head's channels that are turned (GPT-NeoX: 0.25)")
    scaling: Scaling | None = Field(None, description="for contexts longer than trained: linear, ntk, yarn")

    def build(self, head_dim: int, max_len: int) -> Rotary:
        """The module for heads of width `head_dim`. Raises `ValueError` where the turned channels are not even."""
        return Rotary(self, head_dim, max_len)


class AlibiOptions(Options):
    """ALiBi (Press et al. 2022): a penalty on the score that grows with the distance, steeper for some heads."""

    type: Literal["alibi"] = "alibi"

    def build(self, heads: int, causal: bool) -> Alibi:
        """The module for so many heads."""
        return Alibi(heads)


class T5Options(Options):
    """T5's relative positions (Raffel et al. 2020): a learned score per head for each bucket of distances."""

    type: Literal["t5"] = "t5"
    buckets: Count = Field(32, description="distances that are told apart")
    max_distance: Count = Field(128, description="from here on all distances share a bucket")

    def build(self, heads: int, causal: bool) -> T5Bias:
        """The module for so many heads."""
        return T5Bias(self, heads, causal)


class LearnedPosition(Module):
    """(B, T, C) -> (B, T, C)   x + table[positions] (Gehring et al. 2017; GPT-2)."""

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


class Rotary(Module):
    """(B, H, T, D) -> (B, H, T, D)   pairs (i, i + R/2) of the first R channels turned by t * base^(-2i/R) (Su et al. 2021).

    The pairing is Llama's; the channels after R are left alone.
    """

    def __init__(self, options: RotaryOptions, head_dim: int, max_len: int) -> None:
        super().__init__()
        self.turned = turned = round(options.fraction * head_dim)
        if turned % 2 or not turned:
            raise ValueError(f"position: rotary turns pairs of channels, and {turned} of {head_dim} are to be turned")
        rate = torch.tensor([options.base ** (-i / turned) for i in range(0, turned, 2)])  # (R/2)
        size = 1.0
        if options.scaling is not None:
            rate, size = options.scaling.rates(rate, turned, options.base)
        angle = torch.outer(torch.arange(max_len, dtype=torch.float32), rate).repeat(1, 2)  # (T, R)
        sign = torch.ones(turned)
        sign[: turned // 2] = -1  # folded into the sine: turning needs no negation
        self.register_buffer("cos", angle.cos() * size, persistent=False)
        self.register_buffer("sin", angle.sin() * sign * size, persistent=False)

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
