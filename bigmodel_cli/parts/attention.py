"""Attention: each position takes a weighted mean of the values at those that it attends to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Count
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.parts.attending import KVCache, WindowCache
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import AnyMixerOptions, States
from bigmodel_cli.parts.heads import HeadOptions, HeadsPart, Projection
from bigmodel_cli.parts.kernels import AttentionSpec
from bigmodel_cli.parts.position import HeadPosition, NoPositionOptions
from bigmodel_cli.roles import Role, fused
from bigmodel_cli.shares import Shares


class AttentionOptions(HeadOptions, AnyMixerOptions):
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


class CrossAttentionOptions(HeadOptions):
    """Attention to a memory, such as the encoder's output (Vaswani et al. 2017)."""

    def build(self, layer: LayerContext) -> CrossAttention:
        """The module. Raises `ValueError` for a width that the heads do not divide."""
        return CrossAttention(self, layer)


class Attention(HeadsPart):
    """(B, T, C) -> (B, T, C)   softmax(Q K^T / sqrt(D)) V, per head (Vaswani et al. 2017).

    Grouped heads: Ainslie et al. 2023.
    """

    def __init__(self, options: AttentionOptions, layer: LayerContext) -> None:
        super().__init__(options, layer)
        causal = layer.causal if options.causal is None else options.causal
        self.spec = AttentionSpec(causal, options.window, options.softcap, options.scale)
        self.qkv = self.projected(layer.dim, *self.rows)
        self.add_output(layer.dim)
        self.rotary = options.position.turning(self.head_dim, layer)
        self.bias = options.position.scoring(self.heads, causal, layer)
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if options.sinks else None
        # A table, or a cache, of max_len positions.
        self.needs_max_len = self.rotary is not None or not options.window

    def weight_roles(self) -> dict[str, Role]:
        """Queries, keys, values and gate are separate matrices."""
        return {"qkv.weight": fused(*self.rows.values(), names=tuple(self.rows))}

    def shares(self) -> Shares:
        """By heads."""
        return self.shares_of({"qkv": tuple(self.rows)})

    @property
    def context_fault(self) -> str:
        return self.rows_fault()

    def new_cache(self, batch: int, max_len: int) -> KVCache | WindowCache:
        """An empty cache for generation."""
        size, window = (self.groups, self.head_dim), self.spec.window
        cache = KVCache.of(self.qkv.weight, batch, max_len if window is None else 0, size, size)
        return cache if window is None else WindowCache(cache.keys, cache.values, window)

    def projections(self, y: Tensor, at_once: bool) -> list[Tensor]:
        """(B, T, rows) -> queries (B, H, T, D), keys and values (B, G, T, D), and the gate, if any.

        They are taken apart `at_once` where a step of generation is to call few operations.
        """
        alike = self.q_norm is self.k_norm is None and len(self.rows) == 3 and not self.own_biases
        if at_once and alike:
            heads = y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            return list(heads.split((self.heads, self.groups, self.groups), 1))
        q, k, v, *gate = self.pieces(y, *self.rows)
        q, k, v = self.of_heads(q, self.q_norm), self.of_heads(k, self.k_norm), self.of_heads(v)
        return [q, k, v, *gate]

    def forward(
        self,
        x: Tensor,
        sequence: SequenceInfo = SINGLE_DOCUMENT,
        cache: KVCache | WindowCache | None = None,
    ) -> Tensor:
        """Mix the positions; with a cache, x holds the positions that follow those in it."""
        q, k, v, *gate = self.projections(self.qkv(self.team.enter(x)), cache is not None)
        if self.rotary is not None:
            q, k = self.rotary(q, sequence), self.rotary(k, sequence)
            if v.requires_grad:  # a view would keep the unturned queries and keys in memory
                v = v.contiguous()
        if cache is not None:
            k, v = cache.append(k.to(cache.keys.dtype), v.to(cache.values.dtype))
            q = q.to(k.dtype)
        share = sequence.share
        if share is not None:
            k, v = share.whole(k, v)
        segments = None if sequence.segment_ids is None else sequence.segment_ids[:, -k.shape[2] :]
        y = self.attend(q, k, v, share=share, segments=segments, bias=self.bias, sinks=self.sinks)
        return self.joined(y, *gate)


class CrossAttention(HeadsPart):
    """x (B, T, C), memory (B, S, C) -> (B, T, C)   softmax(Q K^T / sqrt(D)) V, per head.

    Queries come from x, keys and values from the memory.

    With a cache, x may have several consecutive rows per row of the memory (the hypotheses of a
    beam search).
    """

    reads_memory = True

    def __init__(self, options: CrossAttentionOptions, layer: LayerContext) -> None:
        super().__init__(options, layer)
        self.spec = AttentionSpec(False, None, options.softcap, options.scale)
        self.of_x: tuple[Projection, ...] = ("q", "g") if "g" in self.rows else ("q",)
        self.q = self.projected(layer.dim, *self.of_x)
        self.kv = self.projected(layer.dim, "k", "v")
        self.add_output(layer.dim)

    def weight_roles(self) -> dict[str, Role]:
        """Keys and values are separate matrices, and so are queries and their gate."""
        q = fused(*(self.rows[name] for name in self.of_x), names=self.of_x)
        return {"kv.weight": fused(self.rows["k"], self.rows["v"], names=("k", "v"))} | (
            {"q.weight": q} if len(self.of_x) > 1 else {}
        )

    def shares(self) -> Shares:
        """By heads."""
        return self.shares_of({"q": self.of_x, "kv": ("k", "v")})

    def new_cache(self, batch: int, max_len: int) -> dict[str, Tensor]:
        """An empty cache; the first step fills it with the memory's keys and values."""
        return {}

    def states(self) -> States:
        """The memory's keys and values; the first step, without them, reads the memory."""
        shape = self.groups, None, self.head_dim
        return {"key": shape, "value": shape}

    def cache_of(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return {"keys": tensors["key"], "values": tensors["value"]} if tensors else {}

    def tensors_of(self, cache: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return {"key": cache["keys"], "value": cache["values"]}

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, S, D) of the memory."""
        k, v = self.pieces(self.kv(self.team.enter(memory)), "k", "v")
        return self.of_heads(k, self.k_norm), self.of_heads(v)

    def forward(
        self, x: Tensor, sequence: SequenceInfo, cache: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Attend to `sequence.memory`; with a cache its keys and values are computed once."""
        q, *gate = self.pieces(self.q(self.team.enter(x)), *self.of_x)
        q = self.of_heads(q, self.q_norm)  # (B, H, T, D)
        if cache:
            k, v = cache["keys"], cache["values"]
        else:
            assert sequence.memory is not None, "cross-attention needs a memory"
            k, v = self.read(sequence.memory)
            if cache is not None:
                cache["keys"], cache["values"] = k, v
        beams = q.shape[0] // k.shape[0]
        if beams > 1:  # all attend to the same memory: as if they were positions of one row
            q = q.unflatten(0, (-1, beams)).transpose(1, 2).flatten(2, 3)  # (B, H, beams * T, D)
        y = self.attend(q, k, v, key_mask=sequence.memory_mask)
        if beams > 1:
            y = y.unflatten(2, (beams, -1)).transpose(1, 2).flatten(0, 1)
        return self.joined(y, *gate)
