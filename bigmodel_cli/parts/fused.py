"""Attention by PyTorch's fused kernels, and by the eager formula where that is faster on a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from bigmodel_cli.device import full_precision
from bigmodel_cli.draw import draws_by_row
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.parts.dropout import applied, drawn
from bigmodel_cli.parts.in_blocks import attention_in_blocks, finite
from bigmodel_cli.parts.log_sums import Attended, with_log_sums
from bigmodel_cli.parts.recomputed import recomputed

SHORT, MIDDLE = 128, 512
"""Most keys for which a CPU trains in bf16 by the eager formula, where a mask is learned, and in
blocks of queries, where none is: half the kernel's time up to here, as much at 1,024.
"""
SMALL = 1 << 12
"""Most scores of a generation step in fp32 for which a CPU takes the kernel: beyond, products of
batches are faster.
"""
FEW = 16
"""Most queries of a generation step for which a CPU takes the eager formula in fp32."""


@dataclass(frozen=True)
class AttentionSpec:
    """Which positions see which, and how scores become weights."""

    causal: bool = True
    window: int | None = None  # positions seen, itself included; to both sides where not causal
    softcap: float | None = None
    scale: float | None = None  # 1 / sqrt(D) when None
    dropout: float = 0.0
    ahead: int = 0  # keys after the last query's own
    remade: bool = False  # a mask is made again for the backward pass, instead of being kept


def fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    mask: Tensor | None,
    is_causal: bool,
    sinks: Tensor | None,
    asked: bool,
) -> Attended:
    """(B, H, T, E); `mask` as in PyTorch, or `is_causal` instead.

    With `asked`, the kernel's log-sums too, where one is used.
    """
    scale = spec.scale or 1 / math.sqrt(q.shape[-1])
    if spec.dropout and not torch.compiler.is_compiling() and (q.is_meta or draws_by_row(len(q))):
        return Attended(_dropping(q, k, v, spec, mask, is_causal, sinks, scale))
    if _few_queries(q, k) and sinks is None and not is_causal:
        with full_precision(q.device):
            y = _cpu_bf16(q.float(), k.float(), v.float(), spec, mask, scale).to(q.dtype)
        return Attended(y)
    slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad
    if slow and sinks is None:
        learned = mask is not None and mask.requires_grad
        if k.shape[2] <= MIDDLE and not learned and not torch.compiler.is_compiling():
            return Attended(_in_blocks(q, k, v, spec, mask, is_causal, scale))
        if k.shape[2] <= SHORT:
            if is_causal:
                mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
            return Attended(_cpu_bf16(q, k, v, spec, mask, scale))
    if sinks is None:
        return _kernel(q, k, v, spec, mask, is_causal, scale, asked)
    q, k, v = _with_sink(q, k, v, sinks, scale)
    if is_causal:  # a dummy query before the first, so that query t still ends at key t
        found = _kernel(F.pad(q, (0, 0, 1, 0)), k, v, spec, None, True, scale, asked)
        return found.mapped(lambda x: x[:, :, 1:])
    if mask is not None:
        mask = F.pad(mask, (1, 0), value=True if mask.dtype == torch.bool else 0.0)
    return _kernel(q, k, v, spec, mask, False, scale, asked)


def _kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    asked: bool,
) -> Attended:
    """PyTorch's kernel.

    Where values are of another width than keys, the narrower are padded with zeros: otherwise it
    would keep T x S weights in memory.
    """
    width, values = q.shape[-1], v.shape[-1]
    if width < values:
        q, k = F.pad(q, (0, values - width)), F.pad(k, (0, values - width))
    elif values < width:
        v = F.pad(v, (0, width - values))
    if q.is_meta and not spec.dropout and (mask is None or not mask.requires_grad):
        return Attended(_shapes(q, k, v, mask, causal)[..., :values])
    kernel = partial(
        F.scaled_dot_product_attention,
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=spec.dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    y, sums = with_log_sums(kernel, q) if asked else Attended(kernel())
    return Attended(y if values >= width else y[..., :values], sums)


def _shapes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The fused kernel on the meta device, where PyTorch would make T x S weights."""
    k, v = ungrouped(k, q), ungrouped(v, q)
    bias = None if mask is None else mask.to(q.dtype)
    y: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=bias
    )[0]
    return y


def plain_step(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether q, k and v are of a step of generation in fp32 on a CPU, without gradients."""
    return (
        q.device.type == "cpu"
        and q.dtype is k.dtype is v.dtype is torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def one_query(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """q (B, H, 1, D), k (B, G, S, D), v (B, G, S, E) -> (B, H, 1, E)   in one operation or three.

    The heads of a group are as if they were queries of one head, so that no key is repeated.
    """
    batch, heads, _, width = q.shape
    groups, keys = k.shape[1], k.shape[2]
    if batch * heads * keys <= SMALL and heads == groups and v.shape[3] == width:
        y: Tensor = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return y
    q = q.reshape(batch * groups, heads // groups, width)
    k, v = k.flatten(0, 1), v.flatten(0, 1)  # views of a cache
    scores = torch.baddbmm(
        q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale or 1 / math.sqrt(width)
    )  # (B * G, H / G, S)
    return torch.bmm(scores.softmax(-1), v).view(batch, heads, 1, v.shape[-1])


def _few_queries(q: Tensor, k: Tensor) -> bool:
    """Whether this is a generation step on a CPU.

    There the eager formula in fp32 takes a quarter of the kernel's time in bf16.
    """
    generating = q.device.type == "cpu" and not q.requires_grad and q.dtype != torch.float64
    return generating and q.shape[2] <= FEW and q.shape[1] == k.shape[1]


def _in_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """In blocks of queries, with dropout; `causal` stands for a mask."""
    k, v = ungrouped(k, q), ungrouped(v, q)
    shape = torch.Size((*q.shape[:-1], k.shape[-2]))
    kept, factor = _dropped(shape, spec.dropout, q.device)
    return attention_in_blocks(q, k, v, scale, causal, mask, kept, factor)


def _dropping(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    mask: Tensor | None,
    causal: bool,
    sinks: Tensor | None,
    scale: float,
) -> Tensor:
    """By formulas of which dropout can be drawn by row: PyTorch's kernels draw by themselves."""
    learned = mask is not None and mask.requires_grad
    if sinks is not None:
        q, k, v = _with_sink(q, k, v, sinks, scale)
        if mask is not None:
            mask = F.pad(mask, (1, 0), value=True if mask.dtype == torch.bool else 0.0)
        if causal:  # the sink comes before all keys
            square = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            mask, causal = square.tril(1), False
    # a plan, on the meta device, is to count what a CPU's formula keeps
    if q.device.type in ("cpu", "meta") and q.dtype in _kinds_in_blocks() and not learned:
        return _in_blocks(q, k, v, spec, mask, causal, scale)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return _cpu_bf16(q, k, v, spec, mask, scale)


def _kinds_in_blocks() -> tuple[torch.dtype, ...]:
    """What is multiplied in blocks as it is: under autocast fp32 is not."""
    bf16, fp32 = torch.bfloat16, torch.float32
    return (bf16,) if torch.is_autocast_enabled("cpu") else (bf16, fp32)


def _dropped(shape: torch.Size, p: float, device: torch.device) -> tuple[Tensor | None, float]:
    """Which weights are kept, None for all, and what they are multiplied by."""
    if not p:
        return None, 1.0
    if device.type == "meta":  # a plan
        return torch.empty(shape, dtype=torch.bool, device=device), 1.0
    found = drawn(shape, p, device)
    assert found is not None, "the caller saw that there are rows"
    return found


def _cpu_bf16(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, mask: Tensor | None, scale: float
) -> Tensor:
    """The eager formula: products in the inputs' precision, softmax in fp32.

    Its T x S scores and weights are computed again in the backward pass.
    """
    k, v = ungrouped(k, q), ungrouped(v, q)
    shape = torch.Size((*q.shape[:-1], k.shape[-2]))
    kept, factor = _dropped(shape, spec.dropout, q.device)
    more = [x for x in (mask, kept) if x is not None]
    # not the tensors themselves: a function that is kept would keep them longer
    masked, dropped = mask is not None, kept is not None

    def formula(q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        scores = (q @ k.transpose(-2, -1)).float() * scale
        if masked and more[0].dtype == torch.bool:
            scores = scores.masked_fill(~more[0], torch.finfo(scores.dtype).min)
        elif masked:
            scores = scores + finite(more[0])
        w = scores.softmax(-1)
        return (applied(w, more[-1], factor) if dropped else w).to(v.dtype) @ v

    return recomputed(formula, q, k, v, *more)


def _with_sink(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A key before all others, whose score is the head's sink and whose value is zero.

    One extra channel carries it: 1 in every query, sink / scale in that key, 0 in the others
    (padded to the kernels' 8).
    """
    k, v = ungrouped(k, q), ungrouped(v, q)
    q = torch.cat(
        (q, torch.ones_like(q[..., :1]), torch.zeros_like(q[..., :1]).expand(*q.shape[:-1], 7)), -1
    )
    k = F.pad(k, (0, 8, 1, 0))
    first = F.pad((sinks / scale)[:, None, None], (q.shape[-1] - 8, 7)).to(k.dtype)  # (H, 1, D + 8)
    k = torch.cat((first.expand(len(k), -1, -1, -1), k[:, :, 1:]), 2)
    return q, k, F.pad(v, (0, 0, 1, 0))


def ungrouped(x: Tensor, q: Tensor) -> Tensor:
    """(B, G, ...) -> (B, H, ...)   keys or values, repeated for each head of q (B, H, ...)."""
    times = q.shape[1] // x.shape[1]
    return x if times == 1 else x.repeat_interleave(times, dim=1)
