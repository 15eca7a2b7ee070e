"""Attention in blocks of queries against the formula in float64, and PyTorch's kernel's errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bigmodel_cli.draw import drawing, kept_by_row
from bigmodel_cli.parts.dropout import drawn
from bigmodel_cli.parts.kernels import AttentionSpec, attend

FORWARD, BACKWARD = 2.8e-3, 4.5e-3
"""Relative errors that rounding to bf16 explains: 2^-9 at most, of weights, sums and gradients."""


def formula(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, kept: Tensor | None
) -> Tensor:
    """Row by row, with keys of as many heads as queries."""
    rows = []
    for t in range(q.shape[2]):
        scores = (q[:, :, t : t + 1] * k).sum(-1) / math.sqrt(q.shape[-1])  # (B, H, S)
        if bias is not None:
            scores = scores + bias[..., t, :]
        if seen is not None:
            scores = scores.masked_fill(~seen[..., t, :], -math.inf)
        w = scores.exp() / scores.exp().sum(-1, keepdim=True)
        if kept is not None:
            w = w * kept[:, :, t]
        rows.append((w[..., None] * v).sum(2))
    return torch.stack(rows, 2)


def error(x: Tensor, right: Tensor) -> float:
    return float((x.double() - right).norm() / right.norm())


def compared(
    sizes: tuple[int, int, int, int, int], spec: AttentionSpec, **given: Tensor
) -> list[float]:
    """Errors of the output, and of the gradients of q, k and v."""
    heads, groups, queries, keys, width = sizes
    torch.manual_seed(queries)
    q = torch.randn(2, heads, queries, width).bfloat16().requires_grad_()
    k, v = (torch.randn(2, groups, keys, width).bfloat16().requires_grad_() for _ in range(2))
    g = torch.randn(2, heads, queries, width).bfloat16()
    state = torch.get_rng_state()
    y = attend(q, k, v, spec, **given)
    y.backward(g)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    bias = given.get("bias")
    seen = kept = None
    if spec.causal:
        seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    elif "key_mask" in given:
        seen = given["key_mask"][:, None, None, :].expand(2, 1, queries, keys)
    if spec.dropout:
        torch.set_rng_state(state)
        drops, factor = drawn(torch.Size((2, heads, queries, keys)), spec.dropout, q.device)
        kept = drops.double() * factor
    repeated = (x.repeat_interleave(heads // groups, 1) for x in exact[1:])
    right = formula(exact[0], *repeated, seen, None if bias is None else bias.double(), kept)
    right.backward(g.double())
    found = [error(y.detach(), right.detach())]
    for ours, theirs in zip((q, k, v), exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        found.append(error(ours.grad, theirs.grad))
    return found


def check(errors: list[float]) -> None:
    assert errors[0] < FORWARD
    assert max(errors[1:]) < BACKWARD


@pytest.mark.parametrize("length", [2, 127, 128, 129, 300])
def test_causal_attention_is_exact_to_bf16(length: int) -> None:
    check(compared((3, 3, length, length, 8), AttentionSpec()))


def test_groups_of_heads_and_dropout() -> None:
    check(compared((6, 2, 131, 131, 4), AttentionSpec(dropout=0.3)))


@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (130, 9), (5, 270)])
def test_masks_of_keys(queries: int, keys: int) -> None:
    mask = torch.rand(2, keys) < 0.6
    mask[:, 0] = True
    check(compared((2, 2, queries, keys, 16), AttentionSpec(causal=False), key_mask=mask))


def test_a_bias_that_is_not_learned() -> None:
    bias = torch.randn(2, 133, 140).bfloat16()
    check(compared((2, 2, 133, 140, 8), AttentionSpec(causal=False), bias=bias))


@pytest.mark.parametrize("length", [64, 256])
def test_gradients_are_not_less_exact_than_of_the_kernel(length: int) -> None:
    ours = compared((2, 2, length, length, 32), AttentionSpec())
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, 2, length, 32).bfloat16().requires_grad_() for _ in range(3))
    g = torch.randn(2, 2, length, 32).bfloat16()
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).backward(g)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    formula(*exact, seen, None, None).backward(g.double())
    kernel = [
        error(x.grad, y.grad)
        for x, y in zip((q, k, v), exact, strict=True)
        if x.grad is not None and y.grad is not None
    ]
    assert sum(ours[1:]) <= sum(kernel)


@pytest.mark.parametrize("mask", [None, "keys", "bias", "learned", "sinks"])
@pytest.mark.parametrize(("queries", "keys"), [(131, 131), (1, 9), (140, 3)])
def test_dropout_by_row_in_fp32(queries: int, keys: int, mask: str | None) -> None:
    """Of all ways that scores are changed, with the very weights dropped that rows' keys say."""
    torch.manual_seed(queries)
    spec = AttentionSpec(causal=mask in (None, "sinks") and queries == keys, dropout=0.3)
    inputs = [torch.randn(2, 4, queries, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 6)]
    given: dict[str, Tensor] = {}
    if mask == "keys":
        given["key_mask"] = torch.rand(2, keys) < 0.6
        given["key_mask"][:, 0] = True
    elif mask == "sinks":
        given["sinks"] = torch.randn(4)
    elif mask is not None:
        given["bias"] = torch.randn(4, queries, keys).requires_grad_(mask == "learned")
    rows = torch.tensor([7, -(1 << 40)])
    columns = keys + ("sinks" in given)
    with drawing(rows):
        drops = kept_by_row((2, 4, queries, columns), round(0.3 * 65_536), torch.device("cpu"))
    assert drops is not None
    kept = drops.double() * 65_536 / (65_536 - round(0.3 * 65_536))
    q, k, v = (x.requires_grad_() for x in inputs)
    with drawing(rows):
        y = attend(q, k, v, spec, **given)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    q2, k2, v2 = (x.repeat_interleave(4 // x.shape[1], 1) for x in exact)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril() if spec.causal else None
    bias = given["bias"].detach().double() if "bias" in given else None
    if "key_mask" in given:
        seen = given["key_mask"][:, None, None, :].expand(2, 1, queries, keys)
    if "sinks" in given:  # a key before all others, of which the bias is the score
        k2, v2 = (torch.nn.functional.pad(x, (0, 0, 1, 0)) for x in (k2, v2))
        bias = torch.zeros(4, queries, columns, dtype=torch.double)
        bias[..., 0] = given["sinks"][:, None].double()
        seen = None if seen is None else torch.nn.functional.pad(seen, (1, 0), value=True)
    right = formula(q2, k2, v2, seen, bias, kept)
    g = torch.randn_like(y)
    y.backward(g)
    right.backward(g.double())
    assert error(y.detach(), right.detach()) < 1e-6
    for ours, theirs in zip(inputs, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert float((ours.grad.double() - theirs.grad).norm()) < 2e-6 * float(g.norm())


@pytest.mark.parametrize(("queries", "gradient"), [(20, True), (3, False)])
def test_a_bias_leaves_a_row_that_sees_nothing_finite(queries: int, gradient: bool) -> None:
    q, k, v = (torch.randn(2, 1, n, 8).bfloat16() for n in (queries, 9, 9))
    if gradient:
        q, k, v = (x.requires_grad_() for x in (q, k, v))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0] = False
    own = AttentionSpec(causal=False)
    y = attend(q, k, v, own, key_mask=mask, bias=torch.randn(1, queries, 9))
    assert bool(y.isfinite().all())
    if gradient:
        y.sum().backward()
        assert all(x.grad is not None and bool(x.grad.isfinite().all()) for x in (q, k, v))
