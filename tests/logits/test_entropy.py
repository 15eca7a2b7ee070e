"""The loss over a vocabulary equals PyTorch's, with its gradient, whatever the pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel_cli.logits import cross_entropy, token_nll
from bigmodel_cli.logits import entropy as loss


@given(
    n=st.integers(1, 40),
    vocab=st.integers(2, 30),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    piece=st.sampled_from([1, 50, 10**6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_equals_pytorchs(n: int, vocab: int, smoothing: float, piece: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(n, vocab, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(-1, vocab, (n,), generator=generator)
    want = F.cross_entropy(
        logits, targets, ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )
    (expected,) = torch.autograd.grad(2.5 * want, logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "PIECE", {"cpu": piece})
        got = cross_entropy(logits, targets, smoothing)
    (gradient,) = torch.autograd.grad(2.5 * got, logits)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient, expected)


@given(
    n=st.integers(1, 40),
    vocab=st.integers(2, 30),
    piece=st.sampled_from([1, 50, 10**6]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_each_target_is_judged_as_pytorch_judges_it(
    n: int, vocab: int, piece: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(2, n, vocab, generator=generator)
    targets = torch.randint(-1, vocab, (2, n), generator=generator)
    kept = logits.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "PIECE", {"cpu": piece})
        nats, right = token_nll(logits, targets)
    want = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1, reduction="none")
    torch.testing.assert_close(nats, want.double(), atol=1e-5, rtol=1e-5)
    assert torch.equal(right, (logits.argmax(-1) == targets) & (targets >= 0))
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_fp32(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (20 * torch.randn(300, 70)).to(kind).requires_grad_()
    targets = torch.randint(70, (300,))
    total = cross_entropy(logits, targets)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, F.cross_entropy(logits.float(), targets, reduction="sum"))
    total.backward()
    assert logits.grad is not None
    want = logits.detach().float().requires_grad_()
    F.cross_entropy(want, targets, reduction="sum").backward()
    assert want.grad is not None
    torch.testing.assert_close(logits.grad, want.grad.to(kind), atol=1e-3, rtol=1e-2)


def test_shapes_of_rows_and_no_gradient() -> None:
    logits, targets = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    want = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(cross_entropy(logits, targets), want)
    nothing = cross_entropy(logits.requires_grad_(), torch.full((3, 4), -1))
    assert float(nothing) == 0
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert float(gradient.abs().sum()) == 0
