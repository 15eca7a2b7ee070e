"""Where a token stands: added to its embedding, or turned into the queries and keys of attention."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Options, Positive
from bigmodel_cli.lazy import Module, Tensor, nn, torch


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

    def build(self, dim: int, max_len: int) -> SinusoidalPosition:
        """The module for positions 0 to max_len - 1."""
        return SinusoidalPosition(dim, max_len)


class RotaryOptions(Options):
    """Rotary position embedding (Su et al. 2021): queries and keys are turned by an angle that grows with the position."""

    type: Literal["rotary"] = "rotary"
    base: Positive = Field(10000.0, description="the longest wavelength is 2 pi x base")

    def build(self, head_dim: int, max_len: int) -> Rotary:
        """The module for heads of width `head_dim`, which must be even."""
        return Rotary(head_dim, max_len, self.base)


class LearnedPosition(Module):
    """(B, T, C) -> (B, T, C)   x + table[start : start + T] (Gehring et al. 2017; GPT-2)."""

    def __init__(self, dim: int, max_len: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_len, dim)

    def forward(self, x: Tensor, start: int) -> Tensor:
        """Add the vectors of positions start, start + 1, ..."""
        return x + self.table.weight[start : start + x.shape[1]]


class SinusoidalPosition(Module):
    """(B, T, C) -> (B, T, C)   x + [sin(t / 10000^(2i/C)), cos(t / 10000^(2i/C))] (Vaswani et al. 2017)."""

    def __init__(self, dim: int, max_len: int) -> None:
        super().__init__()
        position = torch.arange(max_len, dtype=torch.float32)[:, None]  # (T, 1)
        rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000.0) / dim))
        table = torch.stack(((position * rate).sin(), (position * rate).cos()), dim=-1).flatten(1)[:, :dim]  # (T, C)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor, start: int) -> Tensor:
        """Add the waves of positions start, start + 1, ..."""
        table: Tensor = self.table  # type: ignore[assignment]
        return x + table[start : start + x.shape[1]].to(x.dtype)


class Rotary(Module):
    """(B, H, T, D) -> (B, H, T, D)   pairs (i, i + D/2) turned by t * base^(-2i/D) (Su et al. 2021; Llama's pairing)."""

    def __init__(self, head_dim: int, max_len: int, base: float) -> None:
        super().__init__()
        rate = torch.tensor([base ** (-i / head_dim) for i in range(0, head_dim, 2)])  # (D/2)
        angle = torch.outer(torch.arange(max_len, dtype=torch.float32), rate).repeat(1, 2)  # (T, D)
        self.register_buffer("cos", angle.cos(), persistent=False)
        sign = torch.ones(head_dim)
        sign[: head_dim // 2] = -1  # folded into the sine: turning needs no negation
        self.register_buffer("sin", angle.sin() * sign, persistent=False)

    def forward(self, x: Tensor, start: int) -> Tensor:
        """Turn the heads of positions start, start + 1, ..."""
        end = start + x.shape[2]
        cos: Tensor = self.cos[start:end].to(x.dtype)  # type: ignore[index]
        sin: Tensor = self.sin[start:end].to(x.dtype)  # type: ignore[index]
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
