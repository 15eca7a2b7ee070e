"""What operations compute and move, by hand; and a step watched operation by operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from bigmodel_cli.bench.watching import Call, watched

CPU = torch.device("cpu")
T, C, W = 6, 10, 14


def one(step: Callable[[], object], name: str) -> Call:
    """The only call of that name."""
    (found,) = [call for call in watched(step, CPU, 1) if call.name == name]
    return found


x, weight, bias = torch.randn(T, C), torch.randn(W, C), torch.randn(W)
table, picked = torch.randn(50, C), torch.tensor([3, 4, 4])
heads = torch.randn(2, 3, T, 8)
images, kernels = torch.randn(2, 4, 9, 9), torch.randn(6, 2, 3, 3)
MOVED = {
    "a linear layer": (
        lambda: F.linear(x, weight, bias), "linear 10 x 14", T * C + C * W + W + T * W
    ),
    "a sum of two": (lambda: x + x[:1], "elementwise", 2 * T * C + C),
    "one that is repeated": (lambda: x + x[:1].expand(T, C), "elementwise", 2 * T * C + C),
    "in place": (lambda: torch.zeros(T, C).add_(x), "elementwise", 3 * T * C),
    "a copy": (lambda: torch.empty(T, C).copy_(x), "copies", 2 * T * C),
    "a part of a copy": (lambda: torch.empty(99, C)[5:7].copy_(x[:2]), "copies", 4 * C),
    "rows of a table": (lambda: F.embedding(picked, table), "embedding", 2 * 3 * C + 6),
    "zeros": (lambda: x.new_empty(T, C).zero_(), "fills", T * C),
    "attention": (
        lambda: F.scaled_dot_product_attention(heads, heads, heads, is_causal=True),
        "attention",
        3 * heads.numel() + heads.numel() + 2 * 3 * T,
    ),
    "a convolution in groups": (
        lambda: F.conv2d(images, kernels, groups=2),
        "convolution 2 x 6, 3 x 3",
        images.numel() + kernels.numel() + 2 * 6 * 49,
    ),
}  # fmt: skip
FLOPS = {
    "a linear layer": 2 * T * C * W,
    "attention": 2 * 2 * 3 * (T * (T + 1) // 2) * 16,
    "a convolution in groups": 2 * 2 * 6 * 49 * 2 * 9,
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", MOVED)
def test_bytes_and_flops_of_an_operation(name: str, gradients: bool) -> None:
    """Each number is four bytes, each index eight; the same where nothing records gradients."""
    step, title, numbers = MOVED[name]
    with torch.inference_mode(not gradients):
        call = one(step, title)
    assert call.bytes == 4 * numbers
    assert call.flops == FLOPS.get(name, 0)
    assert call.kind == torch.float32


def test_views_and_empty_memory_are_no_work() -> None:
    assert not watched(lambda: torch.empty(5).view(5, 1).expand(5, 3).detach()[1:].T, CPU, 1)


def test_a_layers_gradients_have_its_name() -> None:
    a, b = torch.randn(T, C, requires_grad=True), torch.randn(W, C, requires_grad=True)
    calls = watched(lambda: F.linear(a, b).sum().backward(), CPU, 2)
    assert [call.flops for call in calls if call.name == "linear 10 x 14"] == [2 * T * C * W] * 3
    assert all(call.seconds > 0 for call in calls)


def test_steps_that_differ_are_those_of_one() -> None:
    rows = iter([3, 1, 2])
    calls = watched(lambda: [x.exp() for _ in range(next(rows))], CPU, 3)
    assert 1 <= len(calls) <= 3


def test_the_update_of_all_weights_is_one_operation() -> None:
    weights = [torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(3, 2))]
    optimizer = torch.optim.AdamW(weights, fused=True)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    calls = watched(optimizer.step, CPU, 1)
    assert {call.name for call in calls} == {"optimizer"}
    # weights, gradients and two means are read and all but gradients written; and steps' counts
    moved = max(call.bytes for call in calls)
    assert 4 * 10 * 7 <= moved <= 4 * 10 * 8 + 4 * 4
