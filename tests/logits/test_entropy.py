"""The loss over a vocabulary equals PyTorch's, with its gradient, whatever the pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel_cli import products
from bigmodel_cli.logits import cross_entropy, late, logits_of, token_nll
from bigmodel_cli.logits import entropy as loss
from bigmodel_cli.logits.fused import fused_piece


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


def head_of(hidden: int, vocab: int, quickened: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    head = torch.nn.Sequential(torch.nn.Linear(hidden, vocab))
    if quickened:
        monkeypatch.setattr(products, "applies", lambda: True)
        products.quicken(head)
    return head[0]


@pytest.mark.parametrize("quickened", [True, False])
def test_a_quickened_head_has_the_loss_of_a_plain_one(
    quickened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head and loss in one, and not the way that heads of any kind take."""
    head = head_of(5, 7, quickened, monkeypatch)
    monkeypatch.setattr(loss, "summed_in_pieces", None)
    hidden, targets = torch.randn(9, 5), torch.randint(7, (9,))
    with late(4):
        found = cross_entropy(logits_of(hidden, head, 7), targets)
    torch.testing.assert_close(found, F.cross_entropy(head(hidden), targets, reduction="sum"))


def test_smoothing_is_as_exact_as_its_dtype() -> None:
    logits = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, -1, 0, 6, 2, 5])
    (found,) = torch.autograd.grad(cross_entropy(logits, targets, 0.1), logits)
    want = logits.detach().softmax(-1) - 0.1 / 7 - 0.9 * F.one_hot(targets.clamp(min=0), 7).double()
    want[1] = 0
    torch.testing.assert_close(found, want, rtol=1e-14, atol=1e-15)


def test_gradients_of_bf16_weights_are_summed_in_fp32() -> None:
    """A hundred pieces are as exact as one product."""
    torch.manual_seed(1)
    head = torch.nn.Linear(16, 11).bfloat16()
    hidden, targets = torch.randn(100, 16).bfloat16(), torch.randint(11, (100,))
    with late(1):
        total = cross_entropy(logits_of(hidden, head, 11), targets)
    found = torch.autograd.grad(total, list(head.parameters()))
    exact = [p.detach().double().requires_grad_() for p in head.parameters()]
    want = F.cross_entropy(F.linear(hidden.double(), *exact), targets, reduction="sum")
    for got, right in zip(found, torch.autograd.grad(want, exact), strict=True):
        assert got.dtype == torch.bfloat16
        assert float((got.double() - right).norm() / right.norm()) < 5e-3


def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden, targets = torch.nn.Linear(5, 7), torch.randn(9, 5), torch.randint(7, (9,))
    wanted = []
    kept = loss._pieces

    def watched(*args: Any) -> Any:
        wanted.append(args[3])
        return kept(*args)

    monkeypatch.setattr(loss, "_pieces", watched)
    with late(4), torch.no_grad():
        cross_entropy(logits_of(hidden, head, 7), targets)
    assert wanted == [None] * 3


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("smoothing", "scale", "cap"), [(0.0, 1.0, None), (0.1, 0.5, 3.0), (0.2, 2.0, None)]
)
def test_the_loss_of_a_gpu(
    kind: torch.dtype, smoothing: float, scale: float, cap: float | None
) -> None:
    """In operations that a compiler joins; the gradient takes the logits' place."""
    torch.manual_seed(4)
    wide = (3 * torch.randn(23, 104, dtype=torch.float64)).to(kind)
    targets = torch.randint(101, (23,))
    targets[::5] = -1
    logits, exact = wide.clone()[:, :101], wide[:, :101].double().requires_grad_()
    finished = exact * scale if cap is None else cap * (exact * scale / cap).tanh()
    expected = torch.nn.functional.cross_entropy(
        finished, targets, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
    )
    expected.backward()
    loss = fused_piece(logits, targets, smoothing, True, scale, cap)
    assert loss.dtype == torch.promote_types(kind, torch.float32)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert exact.grad is not None
    apart = float((logits.double() - exact.grad).norm() / exact.grad.norm())
    assert apart < {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 4e-3}[kind]
    kept = wide.clone()[:, :101]
    assert float(fused_piece(kept, targets, smoothing, False, scale, cap)) == float(loss)
    assert torch.equal(kept, wide[:, :101])
