"""Each part against its formula, or the reference implementation, on random shapes."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bigmodel_cli.parts import recurrence
from bigmodel_cli.parts.attention import Attention, AttentionOptions
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.parts.ffn import (
    GeGLUOptions,
    GeluFFNOptions,
    ReluFFNOptions,
    SiluFFNOptions,
    SquaredReluFFNOptions,
    SwiGLUOptions,
)
from bigmodel_cli.parts.flex import flex
from bigmodel_cli.parts.kernels import AttentionSpec, attend, eager_attention, weights
from bigmodel_cli.parts.norm import LayerNormOptions, RMSNormOptions
from bigmodel_cli.parts.position import RotaryOptions, SinusoidalOptions
from bigmodel_cli.parts.rotary import NTKScaling
from bigmodel_cli.parts.score_bias import alibi_slopes
from bigmodel_cli.parts.watched import AttentionCall

few = settings(max_examples=25, deadline=None)


def plain_attention(part: Attention, x: Tensor, positions: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V written out, head by head and position by position."""
    d, h, g = part.head_dim, part.heads, part.groups
    qkv = x @ part.qkv.weight.T + (part.qkv.bias if part.qkv.bias is not None else 0)
    q, k, v = qkv.split([h * d, g * d, g * d], dim=-1)
    out = torch.zeros(*x.shape[:2], h * d, dtype=x.dtype)
    for b in range(x.shape[0]):
        for head in range(h):
            group = head // (h // g)
            queries, keys = q[b, :, head * d : (head + 1) * d], k[b, :, group * d : (group + 1) * d]
            if part.rotary is not None:
                queries, keys = turned(queries, positions), turned(keys, positions)
            for t in range(x.shape[1]):
                last = t + 1 if part.spec.causal else x.shape[1]
                weights = (queries[t] @ keys[:last].T / math.sqrt(d)).softmax(-1)
                out[b, t, head * d : (head + 1) * d] = (
                    weights @ v[b, :last, group * d : (group + 1) * d]
                )
    return out @ part.out.weight.T + (part.out.bias if part.out.bias is not None else 0)


def turned(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions by complex multiplication: (T, D) -> (T, D), pairs (i, i + D/2)."""
    half = x.shape[-1] // 2
    rate = base ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(
        torch.ones(len(positions), half, dtype=torch.float64), positions[:, None].double() * rate
    )
    z = torch.complex(x[:, :half].double(), x[:, half:].double()) * turn
    return torch.cat((z.real, z.imag), -1).to(x.dtype)


@given(
    batch=st.integers(1, 3), length=st.integers(1, 9), groups=st.sampled_from([1, 2, 3]),
    per_group=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([2, 4, 8]), causal=st.booleans(), rotary=st.booleans(),
    bias=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@few
def test_attention_equals_the_plain_formula(
    batch: int,
    length: int,
    groups: int,
    per_group: int,
    head_dim: int,
    causal: bool,
    rotary: bool,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    options = AttentionOptions(
        num_heads=groups * per_group, kv_heads=groups, head_dim=head_dim, causal=causal, bias=bias,
        **({"position": RotaryOptions()} if rotary else {}),
    )  # fmt: skip
    part = options.build(LayerContext(12, 16)).double()
    x = torch.randn(batch, length, 12, dtype=torch.float64)
    expected = plain_attention(part, x, torch.arange(length))
    # cos and sin are kept in float32, so rotary is equal to that
    torch.testing.assert_close(part(x), expected, rtol=0, atol=1e-6 if rotary else 1e-12)


@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    rotary=st.booleans(),
    seed=st.integers(0, 99),
)
@few
def test_attention_with_a_cache_equals_attention_without(
    lengths: list[int], rotary: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    options = AttentionOptions(
        num_heads=4, kv_heads=2, **({"position": RotaryOptions()} if rotary else {})
    )
    part = options.build(LayerContext(16, 32)).eval()
    x = torch.randn(2, sum(lengths), 16)
    cache = part.new_cache(2, 32)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    pieces = [
        part(piece, SequenceInfo(start), cache)
        for start, piece in zip(starts, x.split(lengths, dim=1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), part(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", ["none", "head", "full"])
def test_captured_attention_weights_give_the_output(gate: Any) -> None:
    torch.manual_seed(0)
    options = AttentionOptions(num_heads=4, kv_heads=2, bias=False, gate=gate)
    part = options.build(LayerContext(16, 32)).eval()
    x = torch.randn(1, 7, 16)
    seen: list[AttentionCall] = []
    part.watcher = seen.append
    y = part(x)
    (call,) = seen
    scores = call.q @ call.k.repeat_interleave(2, 1).transpose(-1, -2) * call.scale
    weights = scores.masked_fill(torch.ones(7, 7).triu(1) > 0, -math.inf).softmax(-1)
    torch.testing.assert_close(weights @ call.v.repeat_interleave(2, 1), call.output)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 7))
    assert bool((weights.triu(1) == 0).all())
    rows = part.qkv(x)
    values = rows[..., 24:32].unflatten(-1, (2, 4)).transpose(1, 2).repeat_interleave(2, dim=1)
    heads = (weights @ values).transpose(1, 2)  # before the gate
    if gate != "none":
        heads = heads * rows[..., 32:].unflatten(-1, (4, -1)).sigmoid()
    again = part.out(heads.flatten(2))
    torch.testing.assert_close(again, y, rtol=1e-5, atol=1e-6)
    lengths = torch.stack(
        [
            (call.v.repeat_interleave(2, 1)[0, h] @ part.out.weight[:, 4 * h : 4 * h + 4].T).norm(
                dim=-1
            )
            for h in range(4)
        ]
    )
    sizes = part.value_sizes(call.v)
    assert sizes is not None
    torch.testing.assert_close(sizes[0], lengths)


def test_what_a_watcher_returns_takes_the_place_of_the_output() -> None:
    torch.manual_seed(2)
    part = AttentionOptions(num_heads=3, bias=False).build(LayerContext(12, 32)).eval()
    x = torch.randn(2, 5, 12)
    part.watcher = lambda call: call.output * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    without = part(x)
    part.watcher = None
    whole = part(x)
    values = (part.qkv(x)[..., 28:32], part.out.weight[:, 4:8])  # head 1's
    q, k = (part.qkv(x)[..., i : i + 4] for i in (4, 16))
    scores = (q @ k.transpose(1, 2) / 2).masked_fill(torch.ones(5, 5).triu(1) > 0, -math.inf)
    torch.testing.assert_close(whole - without, scores.softmax(-1) @ values[0] @ values[1].T)


def test_dropout_of_attention_acts_in_training_only() -> None:
    part = AttentionOptions(num_heads=2, dropout=0.5).build(LayerContext(8, 8))
    x = torch.randn(1, 6, 8)
    assert not torch.equal(part(x), part(x))
    part.eval()
    assert torch.equal(part(x), part(x))


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads: 3 heads do not divide dim 16"):
        AttentionOptions(num_heads=3).build(LayerContext(16, 8))
    with pytest.raises(ValueError, match="not a multiple of kv_heads"):
        AttentionOptions(num_heads=4, kv_heads=3)
    for bias, message in ((["g"], "g: there is no gate"), (["q", "q"], "q: twice")):
        with pytest.raises(ValueError, match=message):
            AttentionOptions(num_heads=4, bias=bias)
    # one way of saying it
    assert AttentionOptions(num_heads=4, bias=["o", "k", "v", "q"]).bias is True
    assert AttentionOptions(num_heads=4, bias=[]).bias is False
    assert AttentionOptions(num_heads=4, bias=["v", "q"]).bias == ["q", "v"]
    assert AttentionOptions(num_heads=4, qk_norm={"over": "head"}).qk_norm is True
    with pytest.raises(ValueError, match="rotary turns pairs"):
        AttentionOptions(num_heads=2, head_dim=3, position=RotaryOptions()).build(
            LayerContext(16, 8)
        )


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    part = RotaryOptions().rotary(8, 64)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    scores = [
        float((part(q, SequenceInfo(t + 5)) * part(k, SequenceInfo(t))).sum()) for t in (0, 7, 40)
    ]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)


def test_sinusoidal_positions() -> None:
    table = SinusoidalOptions().build(6, 10)(torch.zeros(1, 10, 6), SINGLE_DOCUMENT)[0]
    for t in range(10):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert float(table[t, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[t, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-6)


def test_sines_whose_slowest_pair_is_last_and_stored() -> None:
    options = SinusoidalOptions(layout="halves", slowest="last", stored=True)
    part = options.build(8, 12)
    assert list(part.state_dict()) == ["table"]
    assert not list(part.parameters())
    for t in range(12):
        for i in range(4):
            angle = t / 10000 ** (i / 3)  # from 1 to exactly 1 / 10000
            assert float(part.table[t, i]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(part.table[t, 4 + i]) == pytest.approx(math.cos(angle), abs=1e-6)
    assert not SinusoidalOptions().build(8, 12).state_dict()
    assert SinusoidalOptions(slowest="last").build(2, 3).table.shape == (3, 2)


def test_feed_forward_networks_equal_their_formulas() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    for options, act in (
        (GeluFFNOptions(), lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))),
        (GeluFFNOptions(approximate="tanh"),
         lambda z: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))),
        (ReluFFNOptions(), lambda z: z.clamp(min=0)),
        (SquaredReluFFNOptions(), lambda z: z.clamp(min=0) ** 2),
        (SiluFFNOptions(), lambda z: z / (1 + torch.exp(-z))),
    ):  # fmt: skip
        part = options.build(LayerContext(8, 8)).double()
        assert part.up.out_features == 32
        hidden = act(x @ part.up.weight.T + part.up.bias)
        torch.testing.assert_close(part(x), hidden @ part.down.weight.T + part.down.bias)
    gated = SwiGLUOptions(hidden=24).build(LayerContext(8, 8)).double()
    gate, up = x @ gated.gate.weight.T, x @ gated.up.weight.T
    torch.testing.assert_close(gated(x), (gate * torch.sigmoid(gate) * up) @ gated.down.weight.T)
    geglu = GeGLUOptions(hidden=24).build(LayerContext(8, 8)).double()
    gate, up = x @ geglu.gate.weight.T, x @ geglu.up.weight.T
    gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    torch.testing.assert_close(geglu(x), (gelu * up) @ geglu.down.weight.T)


def test_alibi_slopes_and_ntk_scaling() -> None:
    assert alibi_slopes(8) == [2.0 ** -(i + 1) for i in range(8)]
    # the authors' code
    assert alibi_slopes(6) == pytest.approx([0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125])
    plain, scaled = (RotaryOptions(scaling=s).rotary(16, 9) for s in (None, NTKScaling(factor=4.0)))
    torch.testing.assert_close(scaled.cos[:, 0], plain.cos[:, 0])  # the fastest stays
    slow = torch.arange(9) * 10000.0 ** (-14 / 16) / 4
    torch.testing.assert_close(scaled.cos[:, 7], slow.cos())  # the slowest is divided by the factor


def test_norms_equal_their_formulas() -> None:
    x = 3 * torch.randn(4, 10) + 1
    rms = RMSNormOptions(eps=1e-5).build(10)
    rms.weight.data.uniform_(0.5, 2)
    torch.testing.assert_close(
        rms(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * rms.weight
    )
    layer = LayerNormOptions(bias=False, eps=1e-3).build(10)
    assert layer.bias is None
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(
        layer(x), centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
    )


def brute_force(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, given: dict[str, Tensor | None]
) -> Tensor:
    """Attention row by row, with everything that the kernels know."""
    batch, heads, queries, width = q.shape
    keys, groups, out = k.shape[2], k.shape[1], torch.zeros(*q.shape[:3], v.shape[-1]).double()
    queried, key, value = q.numpy(), k.numpy(), v.numpy()  # plain numbers cost a tenth of tensors
    segments, keep, bias, sinks = (
        None if found is None else found.tolist()
        for found in (given.get(name) for name in ("segments", "keep", "bias", "sinks"))
    )
    for b, h, t in itertools.product(range(batch), range(heads), range(queries)):
        g, i = h // (heads // groups), keys - queries + t
        scores, seen = [], []
        for j in range(keys):
            if (spec.causal and j > i) or (spec.window is not None and abs(i - j) >= spec.window):
                continue
            if (segments is not None and segments[b][i] != segments[b][j]) or (
                keep is not None and not keep[b][j]
            ):
                continue
            s = float(queried[b, h, t] @ key[b, g, j]) * (spec.scale or width**-0.5)
            s = spec.softcap * math.tanh(s / spec.softcap) if spec.softcap else s
            scores.append(s + (bias[h][t][j] if bias is not None else 0))
            seen.append(j)
        extra = [sinks[h]] if sinks is not None else []
        w = [math.exp(s) for s in scores + extra]
        out[b, h, t] = torch.from_numpy(sum(w[n] * value[b, g, j] for n, j in enumerate(seen)))
        out[b, h, t] /= sum(w)
    return out


@given(
    keys=st.integers(1, 9), fewer=st.integers(0, 3), causal=st.booleans(),
    window=st.sampled_from([None, 1, 2, 3, 20]),
    softcap=st.sampled_from([None, 2.0]), segmented=st.booleans(), biased=st.booleans(),
    sunk=st.booleans(),
    scale=st.sampled_from([None, 0.7]), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=70, deadline=None)
def test_every_rule_of_the_kernels_equals_brute_force(
    keys: int, fewer: int, causal: bool, window: int | None, softcap: float | None, segmented: bool,
    biased: bool,
    sunk: bool, scale: float | None, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    queries = max(1, keys - fewer)
    q, k, v = (
        torch.randn(2, h, n, 4, dtype=torch.float64)
        for h, n in ((4, queries), (2, keys), (2, keys))
    )
    spec = AttentionSpec(causal, window, softcap, scale)
    given: dict[str, Tensor | None] = {
        "segments": torch.randint(0, 2, (2, keys)).cumsum(1) if segmented else None,
        "bias": torch.randn(4, queries, keys, dtype=torch.float64) if biased else None,
        "sinks": torch.randn(4, dtype=torch.float64) if sunk else None,
    }
    want = brute_force(q, k, v, spec, given)
    torch.testing.assert_close(attend(q, k, v, spec, **given), want)
    torch.testing.assert_close(eager_attention(weights(q, k, spec, **given), v, spec), want)
    if not sunk:
        q, k, v = q.float(), k.float(), v.float()
        bias = None if given["bias"] is None else given["bias"].float()
        torch.testing.assert_close(
            flex(q, k, v, spec, given["segments"], bias).output, want.float(), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("rule", ["scan", "delta_scan"])
def test_a_librarys_kernel_is_called_with_its_layout(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA flash-linear-attention computes; here its kernel's documented contract, position by
    position, stands in.
    """

    def kernel(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor | None = None,
        *,
        scale: float,
        initial_state: Tensor | None,
        output_final_state: bool,
        # q, k (B, T, H, K), v (B, T, H, V), g, beta (B, T, H), state (B, H, K, V)
    ) -> tuple[Tensor, Tensor]:
        assert scale == 1.0
        assert output_final_state
        state = (
            torch.zeros(len(q), q.shape[2], q.shape[3], v.shape[3])
            if initial_state is None
            else initial_state
        )
        outputs = []
        for t in range(q.shape[1]):
            state = state * g[:, t, :, None, None].exp()
            new = v[:, t]
            if beta is not None:
                new = (new - (k[:, t, :, None] @ state)[:, :, 0]) * beta[:, t, :, None]
            state = state + k[:, t, :, :, None] * new[:, :, None]
            outputs.append((q[:, t, :, None] @ state)[:, :, 0])
        return torch.stack(outputs, 1), state

    q, k, v = (torch.randn(2, 3, 11, n) for n in (4, 4, 5))
    k = k / k.norm(dim=-1, keepdim=True)
    decay, beta = -torch.rand(2, 3, 11), torch.rand(2, 3, 11)
    state = torch.randn(2, 3, 4, 5)
    rates = (decay,) if rule == "scan" else (decay, beta)
    own = getattr(recurrence, rule)(q, k, v, *rates, state, SINGLE_DOCUMENT, 4)
    fla = SimpleNamespace(
        simple_gla=SimpleNamespace(chunk_simple_gla=kernel),
        gated_delta_rule=SimpleNamespace(chunk_gated_delta_rule=kernel),
    )
    monkeypatch.setattr(recurrence, "_library", lambda q, sequence: fla)
    theirs = getattr(recurrence, rule)(q, k, v, *rates, state, SINGLE_DOCUMENT, 4)
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)
