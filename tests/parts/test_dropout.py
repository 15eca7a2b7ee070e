"""Dropout from a quarter of the random numbers is dropout: its rate, its scale, its independence,
its gradient.
"""

from __future__ import annotations

import pytest
import torch

from bigmodel_cli.parts.dropout import dropout


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rate_scale_and_independence(p: float, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    n = 1_000_003  # no multiple of four
    y = dropout(torch.ones(n, dtype=kind), p, True)
    zero = (y == 0).double()
    assert abs(float(zero.mean()) - p) < 5 * (p * (1 - p) / n) ** 0.5 + 2**-17
    kept = y[y != 0].unique()
    assert len(kept) == 1
    assert float(kept) == pytest.approx(1 / (1 - p), rel=1e-2 if kind == torch.bfloat16 else 1e-4)
    # the four decisions of one number have the same rate, and know nothing of one another
    for lane in range(4):
        own = zero[lane::4]
        assert abs(float(own.mean()) - p) < 5 * (4 * p * (1 - p) / n) ** 0.5 + 2**-17
    for shift in (1, 2, 3, 4, 8):
        both = (zero[shift:] * zero[:-shift]).mean()
        assert abs(float(both) - p * p) < 5 * (p * p / n) ** 0.5 + 2**-16


def test_the_gradient_goes_where_the_values_went_and_a_seed_repeats_it() -> None:
    x = torch.randn(7, 13, requires_grad=True)
    torch.manual_seed(3)
    y = dropout(x, 0.4, True)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(y, x * x.grad)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.4, True), y)
    assert not torch.equal(dropout(x, 0.4, True), y)


def test_nothing_is_dropped_in_evaluation_or_at_zero() -> None:
    x = torch.randn(5)
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
