"""Linear recurrences: chunked as one position after the other, whatever the decays; retention as
its authors compute it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bigmodel_cli.parts import retention
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.convolution import ConvolutionOptions
from bigmodel_cli.parts.gated_deltanet import GatedDeltaNetOptions
from bigmodel_cli.parts.mamba2 import Mamba2Options
from bigmodel_cli.parts.recurrence import delta_scan, scan
from bigmodel_cli.parts.retention import RetentionOptions

few = settings(max_examples=15, deadline=None)


def one_by_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor | None,
    state: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The recurrence itself in float64, position after position; the state is emptied where a
    segment begins.
    """
    q, k, v, decay = (t.double() for t in (q, k, v, decay))
    kept = (
        torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1]).double()
        if state is None
        else state.double()
    )
    outputs = []
    for t in range(q.shape[2]):
        if segments is not None and t:
            same = (segments[:, t] == segments[:, t - 1]).double()
            kept = kept * same[:, None, None, None]
        kept = kept * decay[:, :, t].exp()[..., None, None]
        new = v[:, :, t]
        if beta is not None:
            new = (new - torch.einsum("bhn,bhnp->bhp", k[:, :, t], kept)) * beta[
                :, :, t, None
            ].double()
        kept = kept + torch.einsum("bhn,bhp->bhnp", k[:, :, t], new)
        outputs.append(torch.einsum("bhn,bhnp->bhp", q[:, :, t], kept))
    return torch.stack(outputs, 2), kept


DECAYS: dict[
    str, tuple[float, float, float]
] = {  # (share of positions, their decay, that of the others)
    "plain": (0.5, -0.1, -1.0),
    "resets beside weak": (0.1, -1e3, -1e-2),
    "overflowing resets": (0.2, -1e30, -1e-3),
    "infinite": (0.2, -torch.inf, -0.05),
    "nothing forgotten": (0.5, 0.0, -1e-8),
    "nothing kept": (1.0, -1e4, 0.0),
}


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize(("length", "size"), [(1, 64), (130, 64), (67, 7), (500, 64)])
def test_chunked_scans_equal_the_recurrence_for_every_decay(
    name: str, delta: bool, length: int, size: int
) -> None:
    torch.manual_seed(length)
    share, some, others = DECAYS[name]
    strength = torch.where(torch.rand(2, 3, length) < share, some, others)
    decay = (strength * torch.rand(2, 3, length).clamp(min=0.1)).requires_grad_()
    q, k, v = (
        torch.randn(2, 3, length, 5),
        torch.randn(2, 3, length, 5),
        torch.randn(2, 3, length, 4),
    )
    k = (k / k.norm(dim=-1, keepdim=True)).requires_grad_()
    beta = torch.rand(2, 3, length) if delta else None
    segments = torch.randint(0, 9, (2, length)).eq(0).cumsum(1) if length % 2 else None
    state = torch.randn(2, 3, 5, 4)
    sequence = SINGLE_DOCUMENT if segments is None else SequenceInfo(0, segments)
    got: Any = delta_scan(q, k, v, decay, beta, state, sequence,
     size) if beta is not None else scan(
        q, k, v, decay, state, sequence, size
    )  # fmt: skip
    want = one_by_one(q, k.detach(), v, decay.detach(), beta, state, segments)
    for ours, theirs in zip(got, want, strict=True):
        assert float((ours.detach().double() - theirs).abs().max()) <= 1e-5 * max(
            1.0, float(theirs.abs().max())
        )
    (got[0].square().sum() + got[1].square().sum()).backward()
    for leaf in (decay, k):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize(
    "options", [Mamba2Options(state=5, head_dim=6, groups=2), GatedDeltaNetOptions(num_heads=3)]
)
@pytest.mark.parametrize("rate", [-30.0, 30.0, 3000.0])
def test_layers_with_extreme_rates_equal_themselves_in_float64(options: Any, rate: float) -> None:
    torch.manual_seed(0)
    part = options.build(LayerContext(12, 400)).eval()
    with torch.no_grad():
        part.dt_bias.copy_(torch.linspace(-1, 1, len(part.dt_bias)) * rate)
        part.log_a.copy_(torch.linspace(-20, 12, len(part.log_a)))
    x = torch.randn(1, 150, 12, requires_grad=True)
    y = part(x)
    y.square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in part.parameters())
    with torch.no_grad():
        exact = part.double()(x.detach().double())
    assert float((y.detach() - exact).abs().max()) <= 2e-4 * float(exact.abs().max())


def of_authors(part: Any, x: Tensor, values: int, form: str, eps: float) -> Tensor:
    """Multi-scale retention as torchscale computes it, in float64, with the same weights; channels
    of a pair are neighbours there.

    Their divisors (of the decay mask by the root of its row's sum, of the scores by their row's
    absolute sum) are part of it.
    """
    x = x.double()
    dim, heads, length = x.shape[-1], part.heads, x.shape[1]
    width = dim // heads
    w = part.qkv.weight.double()
    # neighbours: channel i, then channel i + N / 2
    place = torch.arange(width).view(2, -1).T.flatten()
    q, k = (
        x @ w[i * dim : (i + 1) * dim].view(heads, width, dim)[:, place].flatten(0, 1).T
        for i in range(2)
    )
    v = (x @ w[2 * dim :].T).unflatten(-1, (heads, values)).transpose(1, 2)
    angle = 10000.0 ** -torch.linspace(0, 1, width // 2, dtype=torch.float64)
    turn = torch.polar(torch.ones(1).double(), torch.arange(length)[:, None] * angle)
    k = k * width**-0.5
    q, k = (
        torch.view_as_complex(t.unflatten(-1, (heads, -1, 2)).transpose(1, 2).contiguous()) * turn
        for t in (q, k)
    )
    gamma = 1 - 2.0 ** (-5 - torch.arange(heads, dtype=torch.float64))
    if form == "parallel":
        apart = torch.arange(length)[:, None] - torch.arange(length)
        mask = torch.where(apart >= 0, gamma[:, None, None] ** apart.clamp(min=0), 0.0)
        mask = mask / mask.sum(-1, keepdim=True).sqrt()
        scores = (q @ k.conj().transpose(-1, -2)).real * mask
        y = scores / scores.sum(-1, keepdim=True).abs().clamp(min=1) @ v
    else:
        state, scale, rows = (
            torch.zeros(len(x), heads, width // 2, values, dtype=torch.complex128),
            torch.zeros(heads),
            [],
        )
        for t in range(length):
            before, scale = scale, scale * gamma + 1
            share = (before * gamma**2 / scale).sqrt().view(-1, 1, 1)
            state = state * share + k[:, :, t, :, None].conj() * v[
                :, :, t, None
            ] / scale.sqrt().view(-1, 1, 1)
            rows.append((q[:, :, t, :, None] * state).sum(2).real)
        y = torch.stack(rows, 2)
    y = y / (y.square().mean(-1, keepdim=True) + eps).sqrt()
    gate = x @ part.gate.weight.double().T
    return (y.transpose(1, 2).flatten(2) * gate * gate.sigmoid()) @ part.out.weight.double().T


@given(
    length=st.integers(1, 45), heads=st.sampled_from([1, 2, 3]), half=st.integers(1, 4),
    values=st.sampled_from([None, 3, 7]),
    chunk=st.sampled_from([1, 7, 64]), form=st.sampled_from(["parallel", "recurrent"]),
    seed=st.integers(0, 999),
)  # fmt: skip
@few
def test_retention_equals_the_authors_formula(
    length: int, heads: int, half: int, values: int | None, chunk: int, form: str, seed: int
) -> None:
    torch.manual_seed(seed)
    dim = 2 * half * heads
    part = (
        RetentionOptions(num_heads=heads, value_dim=values, chunk=chunk)
        .build(LayerContext(dim, 64))
        .double()
        .eval()
    )
    for p in part.parameters():
        torch.nn.init.normal_(p, 0.0, 0.5)
    x = torch.randn(2, length, dim, dtype=torch.float64)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "EPS", 0.0)  # their forms differ by what it is added to
        want = of_authors(part, x, values or 2 * half, form, 0.0)
        assert float((part(x) - want).abs().max()) <= 2e-5 * max(1.0, float(want.abs().max()))
        cache, pieces = part.new_cache(2, 64), []
        for first in range(0, length, 4):
            pieces.append(part(x[:, first : first + 4], SequenceInfo(first), cache))
        torch.testing.assert_close(torch.cat(pieces, 1), part(x), atol=1e-9, rtol=1e-7)


def test_retention_at_long_distances_and_with_many_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(retention, "EPS", 0.0)
    # 1 - 2^-28 is 1 in float32
    part = RetentionOptions(num_heads=24).build(LayerContext(48, 400)).double().eval()
    x = torch.randn(1, 400, 48).double()
    with torch.no_grad():
        want = of_authors(part, x, 2, "recurrent", 0.0)
        assert float((part(x) - want).abs().max()) <= 1e-4 * float(want.abs().max())


@pytest.mark.parametrize("heads", [4, 5])
def test_retention_of_heads_that_do_not_fit_is_refused(heads: int) -> None:
    with pytest.raises(ValueError, match="num_heads"):
        RetentionOptions(num_heads=heads).build(LayerContext(12, 8))


@given(length=st.integers(1, 9), kernel=st.sampled_from([2, 5, 16]), seed=st.integers(0, 999))
@few
def test_convolutions_longer_than_the_sequence(length: int, kernel: int, seed: int) -> None:
    """Each segment alone, each piece after what came before, and tap by tap."""
    torch.manual_seed(seed)
    part = ConvolutionOptions(kernel=kernel, bias=True).build(LayerContext(5, 16)).double().eval()
    x = torch.randn(2, length, 5, dtype=torch.float64)
    before, after, value = part.input(x).chunk(3, -1)
    inner = before * value
    y = torch.zeros_like(inner) + part.conv.bias
    for t in range(length):
        for back in range(min(kernel, t + 1)):
            y[:, t] += inner[:, t - back] * part.conv.weight[:, kernel - 1 - back]
    want = part.out(after * y)
    torch.testing.assert_close(part(x), want)
    cut = length // 2
    if cut:
        segments = (torch.arange(length) >= cut).long().expand(2, -1)
        alone = torch.cat((part(x[:, :cut]), part(x[:, cut:])), 1)
        torch.testing.assert_close(part(x, SequenceInfo(0, segments)), alone)
        cache = part.new_cache(2, 16)
        pieces = [
            part(x[:, :cut], SequenceInfo(0), cache),
            part(x[:, cut:], SequenceInfo(cut), cache),
        ]
        torch.testing.assert_close(torch.cat(pieces, 1), want)
