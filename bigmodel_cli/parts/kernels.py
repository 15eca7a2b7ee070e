"""How attention is computed: by PyTorch's fused kernels where possible, else by the eager formula.

Queries are aligned with the last keys: query t of T stands at key position S - T + t.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.device import full_precision
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.parts.dropout import dropout

SHORT = 128
"""Keys up to which the plain formula's gradient takes a CPU less time in bf16 than the fused
kernel's (a third, at 64).
"""
FEW = 16
"""Queries that count as few."""


@dataclass(frozen=True)
class AttentionSpec:
    """Which positions see which, and how scores become weights."""

    causal: bool = True
    window: int | None = None  # positions seen, itself included; to both sides where not causal
    softcap: float | None = None
    scale: float | None = None  # 1 / sqrt(D) when None
    dropout: float = 0.0


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    *,
    segments: Tensor | None = None,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """q (B, H, T, D), k (B, G, S, D), v (B, G, S, E) -> (B, H, T, E).

    `segments` (B, S) are those of the keys (the last T are the queries'); `key_mask` (B, S) is True
    for keys that may be seen; `bias` (H, T, S) is added to the scores; `sinks` (H) are scores of a
    key without a value (Agarwal et al. 2025, gpt-oss).
    """
    queries, keys = q.shape[2], k.shape[2]
    spec = _needed(spec, queries, keys)
    special = segments is not None or key_mask is not None or bias is not None
    if spec.softcap is not None:
        if q.is_cuda and key_mask is None and sinks is None and not spec.dropout:
            return flex(q, k, v, spec, segments, bias)
        return eager_attention(
            weights(q, k, spec, segments=segments, key_mask=key_mask, bias=bias, sinks=sinks),
            v,
            spec,
        )
    if spec.causal and spec.window and queries == keys > 2 * spec.window and not special:
        return _windowed(q, k, v, spec, sinks)
    if not special and spec.window is None and (not spec.causal or queries == keys):
        return _fused(q, k, v, spec, None, spec.causal, sinks)
    if q.is_cuda and key_mask is None and sinks is None and not spec.dropout and queries > 1:
        return flex(q, k, v, spec, segments, bias)
    mask = attention_mask(queries, keys, spec, q.device, segments, key_mask)
    if bias is not None:
        mask = bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, -math.inf)
    return _fused(q, k, v, spec, mask, False, sinks)


def weights(
    q: Tensor,
    k: Tensor,
    spec: AttentionSpec,
    *,
    segments: Tensor | None = None,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(scale * Q K^T + bias): (B, H, T, S) in fp32 (Vaswani et al. 2017, equation 1)."""
    queries, keys = q.shape[2], k.shape[2]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    kind = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(kind) @ k.to(kind).transpose(-2, -1) * (spec.scale or 1 / math.sqrt(q.shape[-1]))
    if spec.softcap is not None:
        scores = (
            spec.softcap * (scores / spec.softcap).tanh()
        )  # Gemma 2 (2024), after Bello et al. 2016
    if bias is not None:
        scores = scores + bias
    mask = attention_mask(queries, keys, spec, q.device, segments, key_mask)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if sinks is not None:
        column = sinks.to(kind).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat((column, scores), -1).softmax(-1)[..., 1:]
    return scores.softmax(-1)


def eager_attention(w: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """(B, H, T, S) weights, values (B, G, S, D) -> (B, H, T, D): weights @ values, materialised."""
    w = dropout(w, spec.dropout, True)
    return (w @ v.repeat_interleave(w.shape[1] // v.shape[1], dim=1).to(w.dtype)).to(v.dtype)


def attention_mask(
    queries: int,
    keys: int,
    spec: AttentionSpec,
    device: torch.device,
    segments: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor | None:
    """(T, S), or (B, 1, T, S) where rows differ: True where a query may attend.

    None where it may attend everywhere.
    """
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(
        keys, device=device
    )  # (T, S)
    mask: Tensor | None = None
    if spec.causal:
        mask = back >= 0
    if spec.window is not None:
        near = back.abs() < spec.window
        mask = near if mask is None else mask & near
    if segments is not None:
        same = (segments[:, -queries:, None] == segments[:, None, :])[:, None]  # (B, 1, T, S)
        mask = same if mask is None else mask & same
    if key_mask is not None:
        kept = key_mask[:, None, None, :]
        mask = kept if mask is None else mask & kept
    return mask


def _needed(spec: AttentionSpec, queries: int, keys: int) -> AttentionSpec:
    """The spec without what changes nothing at this size."""
    causal = spec.causal and not (queries == 1 and spec.window is None)
    window = None if spec.window is None or spec.window >= keys else spec.window
    return AttentionSpec(causal and keys > 1, window, spec.softcap, spec.scale, spec.dropout)


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    mask: Tensor | None,
    is_causal: bool,
    sinks: Tensor | None,
) -> Tensor:
    scale = spec.scale or 1 / math.sqrt(q.shape[-1])
    if _few_queries(q, k) and sinks is None and not is_causal:
        with full_precision(q.device):
            return _cpu_bf16(q.float(), k.float(), v.float(), spec, mask, scale)
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad
    if slow and k.shape[2] <= SHORT and sinks is None:
        if is_causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        return _cpu_bf16(q, k, v, spec, mask, scale)
    if sinks is None:
        return _kernel(q, k, v, spec, mask, is_causal, scale)
    q, k, v = _with_sink(q, k, v, sinks, scale)
    if is_causal:  # a dummy query before the first, so that query t still ends at key t
        return _kernel(F.pad(q, (0, 0, 1, 0)), k, v, spec, None, True, scale)[:, :, 1:]
    if mask is not None:
        mask = F.pad(mask, (1, 0), value=True if mask.dtype == torch.bool else 0.0)
    return _kernel(q, k, v, spec, mask, False, scale)


def _kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """PyTorch's kernel.

    Values of another width than the keys are padded with zeros; else it would keep T x S weights in
    memory.
    """
    width, values = q.shape[-1], v.shape[-1]
    if width < values:
        q, k = F.pad(q, (0, values - width)), F.pad(k, (0, values - width))
    elif values < width:
        v = F.pad(v, (0, width - values))
    if q.is_meta and not spec.dropout and (mask is None or not mask.requires_grad):
        return _shapes(q, k, v, mask, causal)[..., :values]
    y = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=spec.dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return y if values >= width else y[..., :values]


def _shapes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The fused kernel on the meta device, where PyTorch would run the eager formula with T x S
    weights.
    """
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    bias = None if mask is None else mask.to(q.dtype)
    y: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=bias
    )[0]
    return y


def _few_queries(q: Tensor, k: Tensor) -> bool:
    """Whether this is a generation step on a CPU.

    There the eager formula in fp32 takes a quarter of the kernel's time in bf16.
    """
    generating = q.device.type == "cpu" and not q.requires_grad and q.dtype != torch.float64
    return generating and q.shape[2] <= FEW and q.shape[1] == k.shape[1]


def _cpu_bf16(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, mask: Tensor | None, scale: float
) -> Tensor:
    """The eager formula: products in the inputs' precision, softmax in fp32;
    `mask` as in PyTorch.
    """
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = (q @ k.transpose(-2, -1)).float() * scale
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            if mask.dtype == torch.bool
            else scores + mask
        )
    return dropout(scores.softmax(-1), spec.dropout, True).to(v.dtype) @ v


def _with_sink(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Prepend a key whose score is the head's sink and whose value is zero, for kernels without
    sinks.

    One extra channel carries it: 1 in every query, sink / scale in that key, 0 in the others
    (padded to the kernels' 8).
    """
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    q = torch.cat(
        (q, torch.ones_like(q[..., :1]), torch.zeros_like(q[..., :1]).expand(*q.shape[:-1], 7)), -1
    )
    k = F.pad(k, (0, 8, 1, 0))
    first = F.pad((sinks / scale)[:, None, None], (q.shape[-1] - 8, 7)).to(k.dtype)  # (H, 1, D + 8)
    k = torch.cat((first.expand(len(k), -1, -1, -1), k[:, :, 1:]), 2)
    return q, k, F.pad(v, (0, 0, 1, 0))


def _windowed(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, sinks: Tensor | None) -> Tensor:
    """Causal sliding-window attention, in blocks of the window's size.

    Each block sees itself and the one before it, so time and memory grow with T x window, not T x
    T.
    """
    size, length = spec.window or 1, q.shape[2]
    batch, blocks = len(q), -(-length // size)
    q, k, v = (F.pad(x, (0, 0, 0, blocks * size - length)) for x in (q, k, v))

    def fold(x: Tensor) -> Tensor:  # (B, H, T, D) -> (B, blocks, H, size, D)
        return x.view(batch, -1, blocks, size, x.shape[-1]).transpose(1, 2)

    def with_last(x: Tensor) -> Tensor:  # (B * blocks, G, 2 * size, D)
        x = fold(x)
        return torch.cat((F.pad(x[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)), x), 3).flatten(0, 1)

    mask = attention_mask(size, 2 * size, AttentionSpec(True, size), q.device)  # (size, 2 * size)
    assert mask is not None
    masks = mask.repeat(blocks, 1, 1)
    masks[0, :, :size] = False  # nothing precedes the first block
    masks = masks.repeat(batch, 1, 1)[:, None]  # (B * blocks, 1, size, 2 * size)
    y = _fused(fold(q).flatten(0, 1), with_last(k), with_last(v), spec, masks, False, sinks)
    whole: Tensor = y.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
    return whole[:, :, :length]


_compiled: Any = None


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    segments: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """The same through FlexAttention (Dong et al. 2024).

    It compiles a mask and a score modification into one fused kernel.
    """
    from torch.nn.attention.flex_attention import flex_attention

    global _compiled

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if spec.softcap is not None:
            value = spec.softcap * torch.tanh(value / spec.softcap)
        return value if bias is None else value + bias[h, i, j]

    queries, keys = q.shape[2], k.shape[2]
    if segments is None:
        blocks = _kept_mask(spec.causal, spec.window, queries, keys, q.device)
    else:
        blocks = _block_mask(spec.causal, spec.window, queries, keys, q.device, segments)
    run: Any = flex_attention
    if q.is_cuda:
        _compiled = _compiled or torch.compile(flex_attention, dynamic=False)
        run = _compiled
    y: Tensor = run(
        q,
        k,
        v,
        score_mod=score,
        block_mask=blocks,
        scale=spec.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return y


def _block_mask(
    causal: bool,
    window: int | None,
    queries: int,
    keys: int,
    device: torch.device,
    segments: Tensor | None = None,
) -> Any:
    """FlexAttention's sparse form of `attention_mask`."""
    from torch.nn.attention.flex_attention import create_block_mask

    shift = keys - queries

    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = j >= 0
        if causal:
            seen = seen & (i + shift >= j)
        if window is not None:
            seen = seen & ((i + shift - j).abs() < window)
        if segments is not None:
            seen = seen & (segments[b, i + shift] == segments[b, j])
        return seen

    return create_block_mask(
        mask, None if segments is None else len(segments), None, queries, keys, device=device
    )


_kept_mask = functools.lru_cache(maxsize=32)(_block_mask)
"""Masks that do not depend on the batch are made once."""
