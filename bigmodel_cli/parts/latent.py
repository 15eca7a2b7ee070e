"""Multi-head latent attention: keys and values of all heads come from one small vector each."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Literal

from pydantic import Field

from bigmodel_cli.config import Count, Probability
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.parts.attending import AttentionPart, KVCache, value_sizes
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo, recorded
from bigmodel_cli.parts.contract import AnyMixerOptions
from bigmodel_cli.parts.kernels import AttentionSpec
from bigmodel_cli.parts.norm import RMSNorm
from bigmodel_cli.parts.position import RotaryOptions
from bigmodel_cli.roles import Role, fused
from bigmodel_cli.shares import WHOLE, Run, Shares, Team, by_inputs, by_outputs, own_of


class LatentAttentionOptions(AnyMixerOptions):
    """Multi-head latent attention, MLA (DeepSeek-V2 2024), with a compressed cache.

    The cache has `kv_rank` + `rotary_dim` numbers per position.
    """

    type: Literal["mla"] = "mla"
    num_heads: Count = Field(description="heads (H)")
    kv_rank: Count = Field(description="width of the vector that keys and values are read from")
    q_rank: Count | None = Field(
        None, description="width of the vector that queries are read from; left out: directly"
    )
    head_dim: Count | None = Field(
        None, description="width of a head without position (D); dim / num_heads when left out"
    )
    rotary_dim: Count = Field(
        16, description="width of the part that knows the position, shared by the heads' keys"
    )
    value_dim: Count | None = Field(None, description="width of a value; as head_dim when left out")
    position: RotaryOptions = Field(RotaryOptions(), description="how that part is turned")
    dropout: Probability = Field(0.0, description="of the attention weights")

    def settled(self, dim: int) -> dict[str, Any]:
        width = self.head_dim or dim // self.num_heads
        return {"head_dim": width, "value_dim": self.value_dim or width}

    def build(self, layer: LayerContext) -> LatentAttention:
        """The module. Raises `ValueError` for a width that the heads do not divide."""
        if self.head_dim is None and layer.dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} heads do not divide dim {layer.dim}; give head_dim"
            )
        return LatentAttention(self, layer)


class LatentAttention(AttentionPart):
    """(B, T, C) -> (B, T, C)   c = norm(W x); k_h = [U_h c, rot(R x)], v_h = V_h c; attention.

    DeepSeek-V2 2024, section 2.1. Scores are multiplied by 1 / sqrt(D + R), and with YaRN by its
    factor for partially rotated heads (DeepSeek-V2's code). Training computes all keys and values.
    Generation absorbs U_h into the query and applies V_h after the mean, so that attention runs
    over the cached c itself, as one key/value head of width kv_rank + rotary_dim.
    """

    def __init__(self, options: LatentAttentionOptions, layer: LayerContext) -> None:
        super().__init__()
        self.heads, self.rank = options.num_heads, options.kv_rank
        self.rotary_dim = options.rotary_dim
        self.width = options.head_dim or layer.dim // options.num_heads
        self.value = options.value_dim or self.width
        wide = self.heads * (self.width + self.rotary_dim)
        self.q_down = nn.Linear(layer.dim, options.q_rank, bias=False) if options.q_rank else None
        self.q_norm = RMSNorm(options.q_rank) if options.q_rank else None
        self.q_up = nn.Linear(options.q_rank or layer.dim, wide, bias=False)
        self.kv_down = nn.Linear(layer.dim, self.rank + self.rotary_dim, bias=False)
        self.kv_norm = RMSNorm(self.rank)
        self.kv_up = nn.Linear(self.rank, self.heads * (self.width + self.value), bias=False)
        self.out = nn.Linear(self.heads * self.value, layer.dim, bias=False)
        self.rotary = options.position.turning(self.rotary_dim, layer)
        scale = options.position.of_scores() / math.sqrt(self.width + self.rotary_dim)
        self.spec = AttentionSpec(layer.causal, None, None, scale)
        self.dropout = options.dropout

    def weight_roles(self) -> dict[str, Role]:
        """Latent vector and shared key are two matrices; the heads' interleaved rows are one."""
        return {"kv_down.weight": fused(self.rank, self.rotary_dim, names=("latent", "rotary"))}

    def matrices(self) -> dict[str, list[Tensor]]:
        q, kv = (
            layer.weight.detach().unflatten(0, (self.heads, -1))
            for layer in (self.q_up, self.kv_up)
        )
        return {
            "q_up.weight": list(q.split([self.width, self.rotary_dim], 1)),
            "kv_down.weight": list(
                self.kv_down.weight.detach().split([self.rank, self.rotary_dim])
            ),
            "kv_up.weight": list(kv.split([self.width, self.value], 1)),
        }

    def shares(self) -> Shares:
        """By heads; what all of them read, the latent vectors, every process computes."""
        self.check_undropped()
        queries = Run("heads", self.heads, self.width + self.rotary_dim)
        every: Shares = {
            **dict.fromkeys(("q_down.weight", "q_norm.weight"), WHOLE),
            **dict.fromkeys(("kv_down.weight", "kv_norm.weight"), WHOLE),
            "q_up.weight": by_outputs(queries),
            "kv_up.weight": by_outputs(Run("heads", self.heads, self.width + self.value)),
            "out.weight": by_inputs(Run("heads", self.heads, self.value)),
        }
        return own_of(self, every)

    @property
    def context_fault(self) -> str:
        return self.rows_fault()

    def narrow(self, team: Team) -> None:
        self.heads, self.team = self.heads // team.size, team

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache of one head: keys are [c, rotary part], values their first `kv_rank`."""
        return KVCache.of(
            self.kv_down.weight, batch, max_len, (1, self.rank + self.rotary_dim), (1, 0)
        )

    def value_sizes(self, v: Tensor) -> Tensor:
        """(B, H, S)   of generation's v, latent vectors (B, 1, S, rank), too: each head reads them
        by its own matrix.
        """
        weight = self.out.weight
        if v.shape[1] < self.heads or v.shape[-1] != self.value:
            up = self.kv_up.weight.unflatten(0, (self.heads, -1))[:, self.width :]
            read = weight.unflatten(1, (self.heads, -1))  # (C, H, value)
            weight = torch.einsum("chv,hvr->chr", read, up.to(read.dtype)).flatten(1)
        return value_sizes(weight, v)

    def forward(
        self, x: Tensor, sequence: SequenceInfo = SINGLE_DOCUMENT, cache: KVCache | None = None
    ) -> Tensor:
        """Mix the positions; with a cache, x holds the positions that follow those in it."""
        low = x if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x))
        q = (
            self.q_up(self.team.enter(low)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        )  # (B, H, T, D + R)
        plain, turned = q.split([self.width, self.rotary_dim], -1)
        q = torch.cat((plain, self.rotary(turned, sequence).to(plain.dtype)), -1)
        c, shared = self.kv_down(x).split([self.rank, self.rotary_dim], -1)
        shared = self.rotary(shared[:, None], sequence)  # (B, 1, T, R)
        latent = torch.cat((self.kv_norm(c)[:, None], shared), -1)  # (B, 1, T, rank + R)
        latent = self.team.enter(latent)
        if sequence.share is not None:  # smaller than the keys and values that are made of it
            (latent,) = sequence.share.whole(latent)
        if cache is not None:
            latent = cache.append(latent.to(cache.keys.dtype), latent[..., :0])[0]
        y = (
            self.absorbed(q, latent, sequence)
            if cache is not None and (recorded() or sequence.offset)
            else self.naive(q, latent, sequence)
        )
        return self.joined(y)

    def naive(self, q: Tensor, latent: Tensor, sequence: SequenceInfo) -> Tensor:
        """(B, H, T, value): keys and values of every head in memory."""
        latent = latent.to(q.dtype)
        share = sequence.share
        with contextlib.nullcontext() if share is None else share.drawing_whole():
            kv = self.kv_up(latent[:, 0, :, : self.rank])
        kv = kv.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = kv.split([self.width, self.value], -1)
        k = torch.cat((k, latent[..., self.rank :].expand(-1, self.heads, -1, -1).to(k.dtype)), -1)
        return self.attend(q.to(k.dtype), k, v, share=share, segments=sequence.segment_ids)

    def absorbed(self, q: Tensor, latent: Tensor, sequence: SequenceInfo) -> Tensor:
        """(B, H, T, value): attention over the latent vectors themselves."""
        up = self.kv_up.weight.unflatten(0, (self.heads, -1)).to(q.dtype)  # (H, D + value, rank)
        read = q[..., : self.width] @ up[:, : self.width]  # (B, H, T, rank)
        q = torch.cat((read, q[..., self.width :]), -1)
        latent = latent.to(q.dtype)
        values = latent[..., : self.rank]
        mean = self.attend(q, latent, values, segments=sequence.segment_ids)  # (B, H, T, rank)
        y: Tensor = mean @ up[:, self.width :].transpose(-1, -2)
        return y
