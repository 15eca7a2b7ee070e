"""What is computed again in the backward pass, and dropout's masks, against plain autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bigmodel_cli.parts.context import LayerContext
from bigmodel_cli.parts.dropout import dropout
from bigmodel_cli.parts.ffn import GeGLUOptions, SwiGLUOptions
from bigmodel_cli.parts.fused import AttentionSpec, fused
from bigmodel_cli.parts.recomputed import recomputed


def kept_bytes(function: Any, *known: torch.Tensor) -> int:
    """Bytes that autograd keeps of a call, beside what is known."""
    kept: dict[int, int] = {}
    there = {t.untyped_storage()._cdata for t in known}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage()._cdata not in there:
            kept[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return sum(kept.values())


def gradients(y: torch.Tensor, inputs: list[torch.Tensor], seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(y.shape, generator=generator).to(y.dtype)
    return list(torch.autograd.grad(y, inputs, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_equals_the_product_with_its_mask(dtype: torch.dtype) -> None:
    x = torch.randn(7, 11, 3).to(dtype).requires_grad_()
    torch.manual_seed(4)
    y = dropout(x, 0.3, True)
    share = 1 / (1 - round(0.3 * 65536) / 65536)
    factor = (y != 0).to(dtype) * torch.tensor(share, dtype=dtype)
    assert torch.equal(y, x * factor)
    assert 0.55 < float((y != 0).float().mean()) < 0.85
    (found,), (expected,) = gradients(y, [x]), gradients(x * factor, [x])
    assert torch.equal(found, expected)
    assert kept_bytes(lambda: dropout(x, 0.3, True)) == x.numel()


@pytest.mark.parametrize("options", [SwiGLUOptions(hidden=10), GeGLUOptions(hidden=10)])
def test_a_gated_network_keeps_its_two_projections(options: Any) -> None:
    torch.manual_seed(0)
    part = options.build(LayerContext(dim=6, max_len=8))
    x = torch.randn(2, 5, 6, requires_grad=True)
    gate, up = (x @ layer.weight.T for layer in (part.gate, part.up))
    act = torch.nn.functional.silu(gate)
    if options.type == "geglu":
        act = torch.nn.functional.gelu(gate, approximate="tanh")
    expected, found = (act * up) @ part.down.weight.T, part(x)
    assert torch.allclose(found, expected, atol=1e-6)
    weights = [x, *part.parameters()]
    for one, other in zip(gradients(found, weights), gradients(expected, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    # gate, up and their product
    assert kept_bytes(lambda: part(x), *weights) == 4 * 2 * 5 * 10 * 3


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("given", ["none", "bool", "learned"])
def test_short_attention_in_bf16_keeps_no_scores(causal: bool, given: str) -> None:
    """The formula in fp32 of the rounded inputs, with grouped keys."""
    if causal and given != "none":
        pytest.skip("the mask holds the causality")
    torch.manual_seed(1)
    q = torch.randn(2, 4, 9, 8).bfloat16().requires_grad_()
    k, v = (torch.randn(2, 2, 9, 8).bfloat16().requires_grad_() for _ in range(2))
    mask: Any = None
    if given == "bool":
        mask = torch.rand(2, 1, 9, 9) < 0.7
        mask[..., 0] = True
    if given == "learned":
        mask = torch.randn(4, 9, 9).bfloat16().requires_grad_()
    inputs = [q, k, v, *([mask] if given == "learned" else [])]

    def run() -> torch.Tensor:
        return fused(q, k, v, AttentionSpec(causal=causal), mask, causal, None, False).output

    scores = q.float() @ k.float().repeat_interleave(2, 1).transpose(-2, -1) / math.sqrt(8)
    if causal:
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -1e30)
    if given == "bool":
        scores = scores.masked_fill(~mask, -1e30)
    if given == "learned":
        scores = scores + mask.float()
    expected = scores.softmax(-1) @ v.float().repeat_interleave(2, 1)
    found = run()
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
    ours, theirs = gradients(found.float(), inputs), gradients(expected, inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.05, atol=0.08)
    scores_bytes = 2 * 4 * 9 * 9
    extra = 9 * 9 + 2 * scores_bytes  # a mask, and what repeats the keys and values
    assert kept_bytes(run, *inputs) <= 2 * 2 * 4 * 9 * 8 * 2 + extra


def test_dropped_attention_repeats_its_mask_in_the_backward_pass() -> None:
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 2, 6, 4).bfloat16().requires_grad_() for _ in range(3))
    spec = AttentionSpec(causal=False, dropout=0.4)
    eye = torch.eye(6, dtype=torch.bfloat16).expand(1, 2, 6, 6).contiguous().requires_grad_()
    torch.manual_seed(9)
    # the weights themselves, dropped
    dropped = fused(q, k, eye, spec, None, False, None, False).output
    torch.manual_seed(9)
    y = fused(q, k, v, spec, None, False, None, False).output
    torch.testing.assert_close(y, dropped @ v, rtol=0.02, atol=0.02)
    assert (dropped == 0).any()
    (found,) = gradients(y, [v])
    (expected,) = gradients(dropped.detach() @ v, [v])
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_what_is_recomputed_follows_autocast() -> None:
    a, b = torch.randn(5, 6, requires_grad=True), torch.randn(6, 3)
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = recomputed(lambda a, b: (a @ b).float().exp(), a, b)
            expected = (a @ b).float().exp()
        assert torch.equal(found, expected)
        assert torch.equal(gradients(found, [a])[0], gradients(expected, [a])[0])
        with torch.no_grad():
            assert not recomputed(lambda a, b: a @ b, a, b).requires_grad
