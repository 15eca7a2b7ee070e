"""Attention: each position takes a weighted mean of the values at the positions it may see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Options, Probability
from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.parts.position import NoPositionOptions, RotaryOptions


class AttentionOptions(Options):
    """Multi-head attention (Vaswani et al. 2017), with grouped or single key/value heads where `kv_heads` is fewer."""

    type: Literal["attention"] = "attention"
    num_heads: Count = Field(description="query heads (H)")
    kv_heads: Count | None = Field(None, description="key/value heads (G); as many as num_heads when left out")
    head_dim: Count | None = Field(None, description="width of a head (D); dim / num_heads when left out")
    causal: bool = Field(True, description="a position sees itself and those before it")
    position: Annotated[NoPositionOptions | RotaryOptions, Field(discriminator="type")] = Field(
        NoPositionOptions(), description="what is done to queries and keys"
    )
    bias: bool = Field(True, description="learn biases in the projections")
    dropout: Probability = Field(0.0, description="of the attention weights")

    @model_validator(mode="after")
    def _groups(self) -> AttentionOptions:
        if self.kv_heads is not None and self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of kv_heads {self.kv_heads}")
        return self

    def build(self, dim: int, max_len: int) -> Attention:
        """The module for `dim` channels. Raises `ValueError` for a width that the heads do not divide."""
        if self.head_dim is None and dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} heads do not divide dim {dim}; give head_dim, or other numbers"
            )
        return Attention(self, dim, max_len)


@dataclass
class KVCache:
    """Keys and values (B, G, S, D) of the positions seen so far; room for `max_len` is taken once."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new positions and return all so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(Module):
    """(B, T, C) -> (B, T, C)   softmax(Q K^T / sqrt(D)) V, per head (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023).

    Computed by the fused kernel. While `probe` is set, the weights (B, H, T, S) are computed beside it by the plain formula
    and handed to it; the output is the kernel's all the same.
    """

    def __init__(self, options: AttentionOptions, dim: int, max_len: int) -> None:
        super().__init__()
        self.heads = options.num_heads
        self.groups = options.kv_heads or options.num_heads
        self.head_dim = options.head_dim or dim // options.num_heads
        self.causal, self.dropout = options.causal, options.dropout
        self.qkv = nn.Linear(dim, (self.heads + 2 * self.groups) * self.head_dim, bias=options.bias)
        self.out = nn.Linear(self.heads * self.head_dim, dim, bias=options.bias)
        rotary = isinstance(options.position, RotaryOptions)
        if rotary and self.head_dim % 2:
            raise ValueError(f"position: rotary needs an even head width, and it is {self.head_dim}")
        self.rotary = (
            options.position.build(self.head_dim, max_len) if isinstance(options.position, RotaryOptions) else None
        )
        self.probe: Callable[[Tensor], None] | None = None

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for generation."""
        weight = self.qkv.weight
        shape = (batch, self.groups, max_len, self.head_dim)
        return KVCache(weight.new_zeros(shape), weight.new_zeros(shape))

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Mix the positions; with a cache, x holds the positions that follow those in it."""
        sizes = [self.heads, self.groups, self.groups]
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2G, T, D)
        q, k, v = qkv.split(sizes, dim=1)
        start = cache.length if cache is not None else 0
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        if cache is not None:
            k, v = cache.append(k.to(cache.keys.dtype), v.to(cache.values.dtype))
            q = q.to(k.dtype)
        mask = self.mask(q, k) if self.causal and start > 0 and q.shape[2] > 1 else None
        if self.probe is not None:
            self.probe(self.weights(q, k))
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and start == 0 and q.shape[2] > 1,
            enable_gqa=self.groups != self.heads,
        )  # (B, H, T, D)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def mask(self, q: Tensor, k: Tensor) -> Tensor:
        """(T, S) True where a query may look: the last query is at the last key."""
        queries, keys = q.shape[2], k.shape[2]
        return torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """softmax(Q K^T / sqrt(D)): (B, H, T, S), in fp32."""
        k = k.repeat_interleave(self.heads // self.groups, dim=1).float()
        scores = q.float() @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        if self.causal:
            scores = scores.masked_fill(~self.mask(q, k), float("-inf"))
        return scores.softmax(-1)
