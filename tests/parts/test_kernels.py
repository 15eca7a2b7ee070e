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


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (3, 3), (5, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_step_of_generation_equals_sums_in_double_precision(
    heads: int, groups: int, scale: float | None
) -> None:
    """One query, grouped heads, values of another width, keys that are part of a longer cache."""
    batch, length, width, values = 2, 9, 5, 7
    q = torch.randn(batch, 1, heads, width).transpose(1, 2)
    k = torch.randn(batch, groups, 20, width)[:, :, :length]
    v = torch.randn(batch, groups, 20, values)[:, :, :length]
    known = torch.empty(batch, heads, 1, values, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            g = h * groups // heads
            scores = k[b, g].double() @ q[b, h, 0].double() * (scale or width**-0.5)
            powers = (scores - scores.max()).exp()
            known[b, h, 0] = (powers / powers.sum()) @ v[b, g].double()
    with torch.no_grad():
        found = attend(q, k, v, AttentionSpec(causal=True, scale=scale))
    torch.testing.assert_close(found.double(), known, rtol=1e-5, atol=1e-6)


def test_dropout_of_one_query_without_gradients() -> None:
    """Training mode without gradients, as where experts are counted ahead, drops as with them."""
    q, k, v = (torch.randn(1, 2, length, 5) for length in (1, 1, 1))
    torch.manual_seed(0)
    with torch.no_grad():
        found = torch.cat([attend(q, k, v, AttentionSpec(dropout=0.5)) for _ in range(20)])
    assert set((found / v).round().flatten().tolist()) == {0.0, 2.0}
