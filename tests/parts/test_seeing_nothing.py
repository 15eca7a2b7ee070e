"""What attends to nothing gets 0 in every path, and all gradients are finite."""

from __future__ import annotations

import pytest
import torch

from bigmodel_cli.parts.kernels import AttentionSpec, attend, weights


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 5, 20])
def test_a_row_without_keys(
    queries: int, kind: torch.dtype, sink: bool, softcap: float | None, learnt: bool
) -> None:
    torch.manual_seed(queries)
    shapes = (2, 3, queries, 8), (2, 3, 22, 8), (2, 3, 22, 8)
    q, k, v = (torch.randn(shape).to(kind).requires_grad_(learnt) for shape in shapes)
    seen = torch.ones(2, 22, dtype=torch.bool)
    seen[0, 7:], seen[1] = False, False
    bias, sinks = torch.randn(3, queries, 22), torch.randn(3) if sink else None
    spec = AttentionSpec(False, None, softcap)
    y = attend(q, k, v, spec, key_mask=seen, bias=bias, sinks=sinks)
    assert not y[1].any()
    scores = q[0].double() @ k[0, :, :7].double().mT / 8**0.5
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    powers = (scores + bias[..., :7].double()).exp()
    below = powers.sum(-1, keepdim=True)
    below = below if sinks is None else below + sinks.double().exp()[:, None, None]
    wanted = powers / below @ v[0, :, :7].double()
    near = 1e-5 if kind == torch.float32 else 0.06
    torch.testing.assert_close(y[0].double(), wanted, atol=near, rtol=near)
    w = weights(q, k, spec, key_mask=seen, bias=bias, sinks=sinks)
    assert not w[1].any()
    if learnt:
        (y.float().square().sum() + w.square().sum()).backward()
        for x in (q, k, v):
            assert x.grad is not None
            assert x.grad.isfinite().all()
            assert not x.grad[1].any()
