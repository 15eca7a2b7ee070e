"""Retention: linear attention whose memory of each head fades at a fixed rate (Sun et al. 2023)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Count, Options
from bigmodel_cli.device import full_precision
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.parts.mamba2 import RecurrentCache
from bigmodel_cli.parts.matrices import OwnMatrices
from bigmodel_cli.parts.norm import HeadGatedRMSNorm
from bigmodel_cli.parts.position import RotaryOptions
from bigmodel_cli.parts.recurrence import scan
from bigmodel_cli.parts.stream import ALONE, Place, Stream
from bigmodel_cli.roles import Role, fused


class RetentionOptions(Options):
    """Retention (Sun et al. 2023, RetNet): linear attention with a fixed decay per head; its state does not grow."""

    type: Literal["retention"] = "retention"
    num_heads: Count = Field(description="heads (H), of dim / num_heads channels each")
    chunk: Count = Field(64, description="positions computed together; changes speed and memory, not the result")

    def build(self, place: Place) -> Retention:
        """The module. Raises `ValueError` where the heads do not divide the width."""
        if not place.causal:
            raise ValueError("type: retention goes from left to right; an encoder's mixers see both sides")
        if place.dim % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} heads do not divide dim {place.dim}")
        return Retention(self, place)


class Retention(OwnMatrices):
    """(B, T, C) -> (B, T, C)   (Q K^T * D) V with D_ij = gamma_h^(i - j) for j <= i (Sun et al. 2023, equation 5).

    gamma_h = 1 - 2^(-5 - h). Queries and keys are rotary; each head is normalised and gated, as in the paper.
    """

    limited = True  # by the table of angles

    def __init__(self, options: RetentionOptions, place: Place) -> None:
        super().__init__()
        self.heads, self.chunk = options.num_heads, options.chunk
        width = place.dim // self.heads
        self.qkv = nn.Linear(place.dim, 3 * place.dim, bias=False)
        self.gate = nn.Linear(place.dim, place.dim, bias=False)
        self.rotary = RotaryOptions().build(width, place.max_len)
        gammas = [1 - 2.0 ** (-5 - h) for h in range(self.heads)]
        self.register_buffer("log_gamma", torch.tensor(gammas).log()[:, None], persistent=False)  # (H, 1)
        self.norm = HeadGatedRMSNorm(width)
        self.out = nn.Linear(place.dim, place.dim, bias=False)

    def weight_roles(self) -> dict[str, Role]:
        """Queries, keys and values are matrices of their own."""
        return {"qkv.weight": fused(*[self.out.in_features] * 3)}

    def new_cache(self, batch: int, max_len: int) -> RecurrentCache:
        """An empty state for generation."""
        return RecurrentCache()

    def forward(self, x: Tensor, stream: Stream = ALONE, cache: RecurrentCache | None = None) -> Tensor:
        """Mix the positions; with a cache, x follows what the state has seen."""
        kind = torch.promote_types(x.dtype, torch.float32)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).to(kind).chunk(3, -1))
        decay = self.log_gamma.to(kind).expand(len(x), self.heads, x.shape[1])  # type: ignore[operator]
        with full_precision(x.device):
            q, k = self.rotary(q, stream) * q.shape[-1] ** -0.5, self.rotary(k, stream)
            y, state = scan(q, k, v, decay, cache.state if cache is not None else None, stream, self.chunk)
        if cache is not None:
            cache.state = state
        gate = self.gate(x).unflatten(-1, (self.heads, -1))
        out: Tensor = self.out(self.norm(y.transpose(1, 2), gate).flatten(2).to(x.dtype))
        return out
