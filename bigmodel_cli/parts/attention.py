"""Attention: each position takes a weighted mean of the values at those that it attends to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Options, Positive, Probability
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.parts.attending import AttentionPart, KVCache, WindowCache
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyMixerOptions
from bigmodel_cli.parts.kernels import AttentionSpec
from bigmodel_cli.parts.norm import RMSNorm
from bigmodel_cli.parts.position import HeadPosition, NoPositionOptions
from bigmodel_cli.roles import Role, fused


class _HeadOptions(Options):
    num_heads: Count = Field(description="query heads (H)")
    kv_heads: Count | None = Field(
        None, description="key/value heads (G); as many as num_heads when left out"
    )
    head_dim: Count | None = Field(
        None, description="width of a head (D); dim / num_heads when left out"
    )
    bias: bool = Field(True, description="learn biases in the projections")
    qk_norm: bool = Field(
        False, description="RMSNorm of each head's queries and keys (Henry et al. 2020; Qwen 3)"
    )
    softcap: Positive | None = Field(
        None, description="scores are squashed into +-softcap by tanh (Gemma 2)"
    )
    dropout: Probability = Field(0.0, description="of the attention weights")
    scale: Positive | None = Field(
        None, description="what scores are multiplied by; 1 / sqrt(D) when left out"
    )

    @model_validator(mode="after")
    def _groups(self) -> _HeadOptions:
        if self.kv_heads is not None and self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of kv_heads {self.kv_heads}"
            )
        return self

    def width(self, dim: int) -> int:
        """The width of a head. Raises `ValueError` where the heads do not divide `dim`."""
        if self.head_dim is None and dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} heads do not divide dim {dim}; give head_dim, or"
                " other numbers"
            )
        return self.head_dim or dim // self.num_heads


class AttentionOptions(_HeadOptions, AnyMixerOptions):
    """Multi-head attention (Vaswani et al. 2017).

    With fewer `kv_heads` it is grouped-query or multi-query attention.
    """

    type: Literal["attention"] = "attention"
    causal: bool | None = Field(
        None,
        description=(
            "a position sees itself and those before it; left out: as the model type has it"
        ),
    )
    window: Count | None = Field(
        None,
        description=(
            "positions seen, the own one included (Beltagy et al. 2020; Mistral); left out: all"
        ),
    )
    position: HeadPosition = Field(NoPositionOptions(), description="what tells positions apart")
    sinks: bool = Field(
        False, description="a learned score per head that takes weight from all keys (gpt-oss)"
    )

    def build(self, layer: LayerContext) -> Attention:
        """The module. Raises `ValueError` for a width that the heads do not divide."""
        return Attention(self, layer)


class CrossAttentionOptions(_HeadOptions):
    """Attention to a memory, such as the encoder's output (Vaswani et al. 2017)."""

    def build(self, layer: LayerContext) -> CrossAttention:
        """The module. Raises `ValueError` for a width that the heads do not divide."""
        return CrossAttention(self, layer)


class Attention(AttentionPart):
    """(B, T, C) -> (B, T, C)   softmax(Q K^T / sqrt(D)) V, per head (Vaswani et al. 2017).

    Grouped heads: Ainslie et al. 2023.
    """

    def __init__(self, options: AttentionOptions, layer: LayerContext) -> None:
        super().__init__()
        self.heads = options.num_heads
        self.groups = options.kv_heads or options.num_heads
        self.head_dim = options.width(layer.dim)
        causal = layer.causal if options.causal is None else options.causal
        self.spec = AttentionSpec(causal, options.window, options.softcap, options.scale)
        self.dropout = options.dropout
        self.qkv = nn.Linear(
            layer.dim, (self.heads + 2 * self.groups) * self.head_dim, bias=options.bias
        )
        self.out = nn.Linear(self.heads * self.head_dim, layer.dim, bias=options.bias)
        self.q_norm = RMSNorm(self.head_dim) if options.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim) if options.qk_norm else None
        self.rotary = options.position.rotary(self.head_dim, layer.max_len)
        self.bias = options.position.bias(self.heads, causal)
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if options.sinks else None
        # A table, or a cache, of max_len positions.
        self.needs_max_len = self.rotary is not None or not options.window

    def weight_roles(self) -> dict[str, Role]:
        """Queries, keys and values are separate matrices."""
        rows = (n * self.head_dim for n in (self.heads, self.groups, self.groups))
        return {"qkv.weight": fused(*rows, names=("q", "k", "v"))}

    def new_cache(self, batch: int, max_len: int) -> KVCache | WindowCache:
        """An empty cache for generation."""
        size, window = (self.groups, self.head_dim), self.spec.window
        cache = KVCache.of(self.qkv.weight, batch, max_len if window is None else 0, size, size)
        return cache if window is None else WindowCache(cache.keys, cache.values, window)

    def forward(
        self,
        x: Tensor,
        sequence: SequenceInfo = SINGLE_DOCUMENT,
        cache: KVCache | WindowCache | None = None,
    ) -> Tensor:
        """Mix the positions; with a cache, x holds the positions that follow those in it."""
        sizes = [self.heads, self.groups, self.groups]
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2G, T, D)
        q, k, v = qkv.split(sizes, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q, sequence), self.rotary(k, sequence)
        if cache is not None:
            k, v = cache.append(k.to(cache.keys.dtype), v.to(cache.values.dtype))
            q = q.to(k.dtype)
        segments = None if sequence.segment_ids is None else sequence.segment_ids[:, -k.shape[2] :]
        bias = self.bias(q.shape[2], k.shape[2]) if self.bias is not None else None
        return self.joined(self.attend(q, k, v, segments=segments, bias=bias, sinks=self.sinks))


class CrossAttention(AttentionPart):
    """x (B, T, C), memory (B, S, C) -> (B, T, C)   softmax(Q K^T / sqrt(D)) V, per head.

    Queries come from x, keys and values from the memory.

    With a cache, x may have several consecutive rows per row of the memory (the hypotheses of a
    beam search).
    """

    def __init__(self, options: CrossAttentionOptions, layer: LayerContext) -> None:
        super().__init__()
        self.heads, self.groups = options.num_heads, options.kv_heads or options.num_heads
        self.head_dim = options.width(layer.dim)
        self.spec = AttentionSpec(False, None, options.softcap, options.scale)
        self.dropout = options.dropout
        self.q = nn.Linear(layer.dim, self.heads * self.head_dim, bias=options.bias)
        self.kv = nn.Linear(layer.dim, 2 * self.groups * self.head_dim, bias=options.bias)
        self.out = nn.Linear(self.heads * self.head_dim, layer.dim, bias=options.bias)
        self.q_norm = RMSNorm(self.head_dim) if options.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim) if options.qk_norm else None

    def weight_roles(self) -> dict[str, Role]:
        """Keys and values are separate matrices."""
        rows = self.groups * self.head_dim
        return {"kv.weight": fused(rows, rows, names=("k", "v"))}

    def new_cache(self, batch: int, max_len: int) -> dict[str, Tensor]:
        """An empty cache; the first step fills it with the memory's keys and values."""
        return {}

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, S, D) of the memory."""
        kv = self.kv(memory).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, 2G, S, D)
        k, v = kv.split(self.groups, dim=1)
        return (self.k_norm(k) if self.k_norm is not None else k), v

    def forward(
        self, x: Tensor, sequence: SequenceInfo, cache: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Attend to `sequence.memory`; with a cache its keys and values are computed once."""
        q = self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T, D)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if cache:
            k, v = cache["keys"], cache["values"]
        else:
            assert sequence.memory is not None, "cross-attention needs a memory"
            k, v = self.read(sequence.memory)
            if cache is not None:
                cache["keys"], cache["values"] = k, v
        beams = len(q) // len(k)
        if beams > 1:  # all attend to the same memory: as if they were positions of one row
            q = q.unflatten(0, (-1, beams)).transpose(1, 2).flatten(2, 3)  # (B, H, beams * T, D)
        y = self.attend(q, k, v, key_mask=sequence.memory_mask)
        if beams > 1:
            y = y.unflatten(2, (beams, -1)).transpose(1, 2).flatten(0, 1)
        return self.joined(y)
