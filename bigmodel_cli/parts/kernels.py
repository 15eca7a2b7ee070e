"""How attention is computed: by PyTorch's fused kernels where possible, else by the eager formula.

Queries are aligned with the last keys: query t of T stands at key position S - T + t, or where
`ahead` keys follow them, at S - ahead - T + t.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import replace
from typing import Any

from bigmodel_cli.device import product_dtype
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.parts.context import recorded
from bigmodel_cli.parts.counted import counted, pairs_seen, told_attention
from bigmodel_cli.parts.dropout import dropout
from bigmodel_cli.parts.flex import flex
from bigmodel_cli.parts.fused import (
    AttentionSpec,
    fused,
    one_query,
    plain_step,
    ungrouped,
)
from bigmodel_cli.parts.log_sums import Attended

__all__ = ["AttentionSpec", "attend", "attended", "distances", "eager_attention", "weights"]


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

    `segments` (B, S) are those of the keys, the queries among them; `key_mask` (B, S) is True
    for keys that may be seen; `bias` (H, T, S) is added to the scores; `sinks` (H) are scores of a
    key without a value (Agarwal et al. 2025, gpt-oss). What sees no key gets 0.
    """
    if (
        q.shape[2] == 1
        and segments is key_mask is bias is sinks is None
        and spec.window is spec.softcap is None
        and not spec.dropout
        and plain_step(q, k, v)
    ):
        return one_query(q, k, v, spec.scale)
    masks = {"segments": segments, "key_mask": key_mask, "bias": bias, "sinks": sinks}
    return _attended(q, k, v, spec, False, **masks).output


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    *,
    segments: Tensor | None = None,
    key_mask: Tensor | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Attended:
    """What `attend` gives, bit for bit, and the log-sums of the kernel that made it, if it has."""
    masks = {"segments": segments, "key_mask": key_mask, "bias": bias, "sinks": sinks}
    return _attended(q, k, v, spec, True, **masks)


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    asked: bool,
    *,
    segments: Tensor | None,
    key_mask: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
) -> Attended:
    queries, keys = q.shape[2], k.shape[2]
    if recorded():  # which kernel is best depends on sizes that are not known
        w = weights(q, k, spec, segments=segments, key_mask=key_mask, bias=bias, sinks=sinks)
        return Attended(eager_attention(w, v, replace(spec, dropout=0.0)))
    if counted(q):
        return Attended(
            told_attention(q, k, v, pairs_seen(queries, keys, spec.causal, spec.window))
        )
    spec = _needed(spec, queries, keys)
    special = segments is not None or key_mask is not None or bias is not None
    flexible = q.is_cuda and key_mask is None and sinks is None and not spec.dropout
    if flexible and spec.softcap is not None:
        return flex(q, k, v, spec, segments, bias, asked)
    if spec.softcap is not None:
        w = weights(q, k, spec, segments=segments, key_mask=key_mask, bias=bias, sinks=sinks)
        return Attended(eager_attention(w, v, spec))
    if spec.causal and spec.window and queries == keys > 2 * spec.window and not special:
        return _windowed(q, k, v, spec, sinks, asked)
    if not special and spec.window is None and (not spec.causal or queries == keys):
        return fused(q, k, v, spec, None, spec.causal, sinks, asked)
    if flexible and queries > 1:
        return flex(q, k, v, spec, segments, bias, asked)
    if spec.remade and bias is None and key_mask is None:
        return _remade(q, k, v, spec, segments, sinks, asked)
    mask = attention_mask(queries, keys, spec, q.device, segments, key_mask)
    seen = None if key_mask is None or mask is None else mask.any(-1, keepdim=True)
    if bias is not None:
        asked = asked and bias.dtype == q.dtype  # else the kernel's scores are with a rounded bias
        bias = bias[None].to(q.dtype)  # CPU's fused kernel takes no mask of three dimensions
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    y, sums = fused(q, k, v, spec, mask, False, sinks, asked)
    # not every kernel gives 0 where a query sees nothing; without a key mask each sees itself
    return Attended(y if seen is None else y.masked_fill(~seen, 0.0), sums)


def _remade(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    segments: Tensor | None,
    sinks: Tensor | None,
    asked: bool,
) -> Attended:
    """With a mask of which autograd keeps how it is made: (T, S) of a long row is larger than all
    else that a layer keeps.
    """
    queries, keys, device, kind = q.shape[2], k.shape[2], q.device, product_dtype(q)

    def make() -> Tensor | None:
        seen = attention_mask(queries, keys, spec, device, segments)
        if seen is None:
            return None
        return torch.zeros(seen.shape, dtype=kind, device=device).masked_fill_(~seen, -math.inf)

    mask = make()
    if mask is None:
        return fused(q, k, v, spec, None, False, sinks, asked)
    storage = mask.untyped_storage().data_ptr()

    def pack(x: Tensor) -> Any:
        is_mask = x.untyped_storage().data_ptr() == storage
        return (x.shape, x.stride(), x.storage_offset()) if is_mask else x

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        again = make()
        assert again is not None
        return again.as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return fused(q, k, v, spec, mask, False, sinks, asked)


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
    """softmax(scale * Q K^T + bias): (B, H, T, S) in fp32 (Vaswani et al. 2017, equation 1).

    A query that may see no key has weights of 0.
    """
    queries, keys = q.shape[2], k.shape[2]
    k = ungrouped(k, q)
    kind = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(kind) @ k.to(kind).transpose(-2, -1) * (spec.scale or 1 / math.sqrt(q.shape[-1]))
    if spec.softcap is not None:  # Gemma 2 (2024), after Bello et al. 2016
        scores = spec.softcap * (scores / spec.softcap).tanh()
    if bias is not None:
        scores = scores + bias
    mask = attention_mask(queries, keys, spec, q.device, segments, key_mask)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if sinks is not None:
        column = sinks.to(kind).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat((column, scores), -1).softmax(-1)[..., 1:]
    if key_mask is None or mask is None:
        return scores.softmax(-1)
    unseen = ~mask.any(-1, keepdim=True)  # the softmax of -inf alone, and its gradient, are NaN
    return scores.masked_fill(unseen, 0.0).softmax(-1).masked_fill(unseen, 0.0)


def eager_attention(w: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """(B, H, T, S) weights, values (B, G, S, D) -> (B, H, T, D): weights @ values, materialised."""
    w = dropout(w, spec.dropout, True)
    return (w @ ungrouped(v, w).to(w.dtype)).to(v.dtype)


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
    back = distances(queries, keys, device, spec.ahead)
    masks: list[Tensor] = []
    if spec.causal:
        masks.append(back >= 0)
    if spec.window is not None:
        masks.append(back.abs() < spec.window)
    if segments is not None:
        own = segments[:, : keys - spec.ahead] if spec.ahead else segments
        own = own[:, -queries:]
        masks.append((own[:, :, None] == segments[:, None, :])[:, None])
    if key_mask is not None:
        masks.append(key_mask[:, None, None, :])
    return functools.reduce(operator.and_, masks) if masks else None


def distances(queries: int, keys: int, device: torch.device, ahead: int = 0) -> Tensor:
    """(T, S)   i - j for queries aligned with the last keys, but for those `ahead`."""
    own = torch.arange(keys - ahead - queries, keys - ahead, device=device)
    return own[:, None] - torch.arange(keys, device=device)


def _needed(spec: AttentionSpec, queries: int, keys: int) -> AttentionSpec:
    """The spec without what changes nothing at this size."""
    causal = spec.causal and not (queries == 1 and spec.window is None)
    window = None if spec.window is None or spec.window >= keys else spec.window
    return replace(spec, causal=causal and keys > 1, window=window)


def _windowed(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, sinks: Tensor | None, asked: bool
) -> Attended:
    """Causal sliding-window attention, in blocks of the window's size.

    Each block sees itself and the one before it, so that time and memory grow with T x window
    rather than with T x T.
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
    folded = fold(q).flatten(0, 1), with_last(k), with_last(v)
    found = fused(*folded, spec, masks, False, sinks, asked)

    def whole(x: Tensor) -> Tensor:  # (B * blocks, H, size, ...) -> (B, H, T, ...)
        joined: Tensor = x.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
        return joined[:, :, :length]

    return found.mapped(whole)
