"""Attention in bf16 on a CPU, which is computed by another way in training, is exact to bf16 as
well.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigmodel_cli.parts.fused import SHORT
from bigmodel_cli.parts.kernels import AttentionSpec, attend, eager_attention, weights


def results(kind: torch.dtype, causal: bool, length: int, how: str) -> list[Tensor]:
    """The output and the gradients of queries, keys and values, in fp32."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, length, 16).to(kind).requires_grad_() for h in (4, 2, 2))
    spec = AttentionSpec(causal)
    if how == "fused":
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    else:
        y = (
            attend(q, k, v, spec)
            if how == "ours"
            else eager_attention(weights(q, k, spec), v, spec)
        )
    y.float().square().sum().backward()
    assert q.grad is not None
    assert k.grad is not None
    assert v.grad is not None
    assert y.dtype == kind
    return [y.detach().float(), q.grad.float(), k.grad.float(), v.grad.float()]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 17, SHORT, SHORT + 1])
def test_training_in_bf16_is_exact_to_bf16(causal: bool, length: int) -> None:
    exact = results(torch.float32, causal, length, "plain")
    ours = results(torch.bfloat16, causal, length, "ours")
    fused = results(torch.bfloat16, causal, length, "fused")
    for want, got, other in zip(exact, ours, fused, strict=True):
        error, others = ((x - want).norm() / want.norm().clamp(min=1e-3) for x in (got, other))
        assert error < max(2 * others, 1e-2)


@pytest.mark.parametrize("length", [1, 5])
@torch.no_grad()
def test_a_few_queries_come_out_in_their_own_precision(length: int) -> None:
    """Of a model that is in bf16 itself: its next layer takes no other."""
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.bfloat16) for _ in range(3))
    y = attend(q, k, v, AttentionSpec(False))
    assert y.dtype == torch.bfloat16
    want = eager_attention(weights(q, k, AttentionSpec(False)), v, AttentionSpec(False))
    assert (y.float() - want.float()).norm() <= 1e-2 * want.float().norm()
