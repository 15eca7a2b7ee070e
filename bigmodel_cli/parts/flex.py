"""Attention with masks and score biases on CUDA: PyTorch's FlexAttention."""

from __future__ import annotations

import functools
from typing import Any

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.parts.fused import AttentionSpec
from bigmodel_cli.parts.log_sums import Attended, rough


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    segments: Tensor | None,
    bias: Tensor | None,
    asked: bool = False,
) -> Attended:
    """`kernels.attend` through FlexAttention (Dong et al. 2024).

    It compiles a mask and a score modification into one fused kernel. With `asked`, its log-sums
    too.
    """

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if spec.softcap is not None:
            value = spec.softcap * torch.tanh(value / spec.softcap)
        return value if bias is None else value + bias[h, i, j]

    queries, keys = q.shape[2], k.shape[2]
    if segments is None:
        blocks = _kept_mask(spec.causal, spec.window, queries, keys, q.device, spec.ahead)
    else:
        blocks = _block_mask(
            spec.causal, spec.window, queries, keys, q.device, spec.ahead, segments
        )
    kernel = functools.partial(
        _function(q.is_cuda),
        q,
        k,
        v,
        score_mod=score,
        block_mask=blocks,
        scale=spec.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    if not asked or rough(q):
        return Attended(kernel())
    y, more = kernel(return_aux=_log_sums_asked())
    return Attended(y, more.lse)


def _log_sums_asked() -> Any:
    from torch.nn.attention.flex_attention import AuxRequest

    return AuxRequest(lse=True)


@functools.cache
def _function(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def _block_mask(
    causal: bool,
    window: int | None,
    queries: int,
    keys: int,
    device: torch.device,
    ahead: int,
    segments: Tensor | None = None,
) -> Any:
    """FlexAttention's sparse form of `attention_mask`."""
    from torch.nn.attention.flex_attention import create_block_mask

    shift = keys - ahead - queries

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
