"""Crossings of a part's options on odd shapes, against one formula in float64: whole, in pieces
over a cache, in float32.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bigmodel_cli.parts import MIXERS
from bigmodel_cli.parts.attention import AttentionOptions, CrossAttentionOptions
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.differential import DifferentialOptions
from bigmodel_cli.parts.latent import LatentAttentionOptions
from bigmodel_cli.parts.position import AlibiOptions, NoPositionOptions, RotaryOptions, T5Options

DIM = 10


def drawn(part: Any, seed: int) -> Any:
    """Every weight drawn anew in float64, norms near 1."""
    torch.manual_seed(seed)
    part = part.double().eval()
    with torch.no_grad():
        for name, p in part.named_parameters():
            p.normal_(1.0 if "norm" in name else 0.0, 0.4)
    return part


def documents(kind: str, rows: int, length: int) -> Tensor | None:
    """Segments (B, T): none, several documents packed, or one with padding on both sides, other
    lengths in each row.
    """
    if kind == "none":
        return None
    if kind == "packed":
        return torch.rand(rows, length).lt(0.3).long().cumsum(1)
    place = torch.arange(length)
    first, last = (torch.randint(0, length // 2 + 1, (rows, 1)) for _ in range(2))
    return ((place >= first) & (place < (length - last).clamp(min=1))).long()


def places(segments: Tensor | None, length: int) -> Tensor:
    """(B or 1, T): how many of a row's positions of the same run stand before each."""
    if segments is None:
        return torch.arange(length)[None]
    found = torch.zeros_like(segments)
    for t in range(1, length):
        found[:, t] = torch.where(segments[:, t] == segments[:, t - 1], found[:, t - 1] + 1, 0)
    return found


def turned(x: Tensor, place: Tensor, count: int) -> Tensor:
    """(B, H, T, D): the first `count` channels turned as complex numbers (i, i + count / 2)."""
    half = count // 2
    angle = place[:, None, :, None].double() * 10000.0 ** (-torch.arange(half).double() / half)
    z = torch.complex(x[..., :half], x[..., half:count]) * torch.polar(
        torch.ones(1).double(), angle
    )
    return torch.cat((z.real, z.imag, x[..., count:]), -1)


def seen(segments: Tensor | None, length: int, causal: bool, window: int | None) -> Tensor:
    """(B or 1, T, S): who may look where."""
    mask = torch.ones(1 if segments is None else len(segments), length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(length):
            if (causal and j > i) or (window is not None and abs(i - j) >= window):
                mask[:, i, j] = False
            elif segments is not None:
                mask[:, i, j] = segments[:, i] == segments[:, j]
    return mask


def unit(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def softmax(scores: Tensor, mask: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Weights over what is seen, written out; a sink is one more term below the line."""
    e = torch.where(mask[:, None], scores, -torch.inf).exp()
    total = e.sum(-1, keepdim=True)
    return e / (total if sinks is None else total + sinks.view(1, -1, 1, 1).exp())


def heads_of(x: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> Tensor:
    y = x @ weight.T if bias is None else x @ weight.T + bias
    return y.unflatten(-1, (count, -1)).transpose(1, 2)


def projected(part: Any, options: Any, names: str, matrix: Any, x: Tensor) -> dict[str, Tensor]:
    """(B, T, rows) of each of these projections, which share a matrix and keep their biases there
    if all have one.
    """
    heads, groups = options.num_heads, options.kv_heads or options.num_heads
    counts = {"q": heads, "k": groups, "v": groups}
    rows = {name: count * part.head_dim for name, count in counts.items()}
    rows["g"] = heads * (1 if options.gate == "head" else part.head_dim)
    biased = [n for n in names if options.bias is True or (options.bias and n in options.bias)]
    assert (matrix.bias is not None) == (biased == list(names))
    found, first = {}, 0
    for name in names:
        own = slice(first, first + rows[name])
        found[name] = x @ matrix.weight[own].T
        if matrix.bias is not None:
            found[name] = found[name] + matrix.bias[own]
        elif name in biased:
            found[name] = found[name] + part.get_parameter(f"{name}_bias")
        else:
            assert f"{name}_bias" not in dict(part.named_parameters())
        first += rows[name]
    assert first == len(matrix.weight)
    return found


def normalised(part: Any, options: Any, name: str, x: Tensor) -> Tensor:
    """(B, T, heads * D) -> (B, heads, T, D)   queries or keys after their norm."""
    norm = part.get_submodule(f"{name}_norm") if options.qk_norm else None
    if norm is not None and options.qk_norm is not True:  # over all heads
        x = unit(x, norm.weight + options.qk_norm.offset, options.qk_norm.eps)
    x = x.unflatten(-1, (-1, part.head_dim)).transpose(1, 2)
    return unit(x, norm.weight) if norm is not None and options.qk_norm is True else x


def left(part: Any, options: Any, y: Tensor, gate: Tensor | None) -> Tensor:
    """(B, H, T, D) -> (B, T, C)   gated, and projected."""
    if options.gate == "head":
        y = y / (1 + (-gate.transpose(1, 2)[..., None]).exp())
    y = y.transpose(1, 2).flatten(2)
    if options.gate == "full":
        y = y / (1 + (-gate).exp())
    assert (part.out.bias is not None) == (
        options.bias is True or bool(options.bias and "o" in options.bias)
    )
    return y @ part.out.weight.T + (0 if part.out.bias is None else part.out.bias)


def by_hand(part: Any, options: AttentionOptions, x: Tensor, segments: Tensor | None) -> Tensor:
    """Attention with every option, in float64."""
    length, heads, groups = x.shape[1], options.num_heads, options.kv_heads or options.num_heads
    width = part.head_dim
    names = "qkv" if options.gate == "none" else "qkvg"
    of = projected(part, options, names, part.qkv, x)
    q, k = (normalised(part, options, name, of[name]) for name in "qk")
    v = of["v"].unflatten(-1, (groups, -1)).transpose(1, 2)
    place = places(segments, length)
    if isinstance(options.position, RotaryOptions):
        count = int(options.position.fraction * width)
        q, k = turned(q, place, count), turned(k, place, count)
    per = heads // groups
    k, v = (torch.stack([t[:, h // per] for h in range(heads)], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * (options.scale or width**-0.5)
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    back = torch.arange(length)[:, None] - torch.arange(length)
    if isinstance(options.position, AlibiOptions):
        power = 1 << (heads.bit_length() - 1)
        slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
        slopes += [2 ** (-8 * (2 * h + 1) / (2 * power)) for h in range(heads - power)]
        scores = scores - torch.tensor(slopes).double().view(-1, 1, 1) * back.abs()
    if isinstance(options.position, T5Options):
        number = torch.zeros(length, length, dtype=torch.long)
        own = options.position.buckets // (1 if options.causal else 2)
        for i in range(length):
            for j in range(length):
                if i < j and options.causal:
                    continue
                n = abs(i - j)
                if n >= own // 2:
                    far = math.log(n / (own // 2)) / math.log(
                        options.position.max_distance / (own // 2)
                    )
                    n = min(own - 1, own // 2 + int(far * (own - own // 2) + 1e-9))
                number[i, j] = n + (own if j > i else 0)
        scores = scores + part.bias.table.weight[number].permute(2, 0, 1)
    w = softmax(scores, seen(segments, length, bool(options.causal), options.window), part.sinks)
    return left(part, options, w @ v, of.get("g"))


def agrees(part: Any, x: Tensor, segments: Tensor | None, want: Tensor, causal: bool) -> None:
    """Whole, in float32, and (where it goes one way) in pieces over a cache, all equal `want`."""
    length = x.shape[1]
    sequence = SequenceInfo(0, segments)
    with torch.no_grad():
        torch.testing.assert_close(part(x, sequence), want, atol=2e-6, rtol=2e-6)
        if causal:
            cache, pieces, cuts = (
                part.new_cache(len(x), length),
                [],
                sorted({0, length // 3, length // 2, length}),
            )
            for first, end in itertools.pairwise(cuts):
                part_of = None if segments is None else segments[:, :end]
                pieces.append(part(x[:, first:end], SequenceInfo(first, part_of), cache))
            torch.testing.assert_close(torch.cat(pieces, 1).double(), want, atol=2e-5, rtol=2e-5)
        half = part.float()(x.float(), sequence)
        torch.testing.assert_close(half.double(), want, atol=3e-5, rtol=3e-4)
    # where gradients are wanted other kernels are taken
    half = part.train()(x.float().requires_grad_(), sequence)
    torch.testing.assert_close(half.detach().double(), want, atol=3e-5, rtol=3e-4)


POSITIONS = [
    NoPositionOptions(), RotaryOptions(), RotaryOptions(fraction=0.7), AlibiOptions(),
    T5Options(buckets=5, max_distance=6),
]  # fmt: skip
kinds = st.sampled_from(["none", "packed", "padded"])
biases = st.one_of(st.booleans(), st.lists(st.sampled_from("qkvog"), unique=True))
qk_norms = st.sampled_from(
    [False, True, {"over": "full", "eps": 0.2}, {"over": "full", "offset": True}]
)
gates = st.sampled_from(["none", "head", "full"])


def without_gate(bias: bool | list[str], gate: str) -> bool | list[str]:
    """A bias of the gate only where there is one."""
    return bias if isinstance(bias, bool) or gate != "none" else [b for b in bias if b != "g"]


@given(
    heads=st.sampled_from([(1, 1), (3, 1), (5, 5), (6, 3), (7, 7)]),
    width=st.sampled_from([3, 4, 6, 9]),
    length=st.sampled_from([1, 2, 5, 12, 13]), window=st.sampled_from([None, 1, 2, 5, 13, 40]),
    causal=st.booleans(),
    softcap=st.sampled_from([None, 1.5]), sinks=st.booleans(), qk_norm=qk_norms,
    scale=st.sampled_from([None, 0.3]),
    bias=biases, gate=gates, position=st.sampled_from(POSITIONS), kind=kinds,
    seed=st.integers(0, 9999),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_attention_with_every_option(
    heads: tuple[int, int], width: int, length: int, window: int | None, causal: bool,
    softcap: float | None, sinks: bool,
    qk_norm: Any, scale: float | None, bias: Any, gate: Any, position: Any, kind: str, seed: int,
) -> None:  # fmt: skip
    if isinstance(position, RotaryOptions) and int(position.fraction * width) % 2:
        width += 1 if position.fraction == 1 else 3 - width % 3  # 6 or 9: 4 or 6 of them are turned
    options = AttentionOptions(
        num_heads=heads[0], kv_heads=heads[1], head_dim=width, window=window, causal=causal,
        softcap=softcap, sinks=sinks,
        qk_norm=qk_norm, scale=scale, bias=without_gate(bias, gate), gate=gate, position=position,
    )  # fmt: skip
    part = drawn(options.build(LayerContext(DIM, 16)), seed)
    x, segments = torch.randn(3, length, DIM).double(), documents(kind, 3, length)
    with torch.no_grad():
        want = by_hand(part, options, x, segments)
    agrees(part, x, segments, want, causal)


@given(
    heads=st.sampled_from([1, 3]), width=st.sampled_from([2, 5, 6]),
    length=st.sampled_from([1, 2, 7, 12]), causal=st.booleans(),
    rotary=st.booleans(), depth=st.integers(0, 7), start=st.sampled_from([None, 0.0, 0.3]),
    kind=kinds, seed=st.integers(0, 9999),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_differential_attention_with_every_option(
    heads: int,
    width: int,
    length: int,
    causal: bool,
    rotary: bool,
    depth: int,
    start: float | None,
    kind: str,
    seed: int,
) -> None:
    width += width % 2 if rotary else 0
    position = RotaryOptions() if rotary else NoPositionOptions()
    options = DifferentialOptions(
        num_heads=heads, head_dim=width, causal=causal, position=position, lambda_init=start
    )
    part = drawn(options.build(LayerContext(DIM, 16, layer_index=depth)), seed)
    x, segments = torch.randn(3, length, DIM).double(), documents(kind, 3, length)
    with torch.no_grad():
        q, k, v = (heads_of(x, w, None, heads) for w in part.qkv.weight.chunk(3))
        maps = []
        for which in range(2):
            own = slice(which * width, (which + 1) * width)
            a, b = q[..., own], k[..., own]
            if rotary:
                a, b = (turned(t, places(segments, length), width) for t in (a, b))
            maps.append(
                softmax(
                    a @ b.transpose(-1, -2) / math.sqrt(width), seen(segments, length, causal, None)
                )
            )
        first = 0.8 - 0.6 * math.exp(-0.3 * depth) if start is None else start
        a, b, c, d = part.factors
        y = (maps[0] - ((a @ b).exp() - (c @ d).exp() + first) * maps[1]) @ v
        y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 - first)
        want = y.transpose(1, 2).flatten(2) @ part.out.weight.T
    agrees(part, x, segments, want, causal)


@given(
    heads=st.sampled_from([1, 3]), width=st.sampled_from([1, 5]),
    value=st.sampled_from([None, 2, 7]), rank=st.sampled_from([1, 6]),
    q_rank=st.sampled_from([None, 4]), length=st.sampled_from([1, 2, 7, 12]), causal=st.booleans(),
    kind=kinds,
    seed=st.integers(0, 9999),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_latent_attention_with_every_option(
    heads: int,
    width: int,
    value: int | None,
    rank: int,
    q_rank: int | None,
    length: int,
    causal: bool,
    kind: str,
    seed: int,
) -> None:
    options = LatentAttentionOptions(
        num_heads=heads, head_dim=width, value_dim=value, kv_rank=rank, q_rank=q_rank, rotary_dim=2
    )
    part = drawn(options.build(LayerContext(DIM, 16, causal=causal)), seed)
    x, segments = torch.randn(3, length, DIM).double(), documents(kind, 3, length)
    with torch.no_grad():
        low = x if q_rank is None else unit(x @ part.q_down.weight.T, part.q_norm.weight)
        place = places(segments, length)
        q = heads_of(low, part.q_up.weight, None, heads)
        q = torch.cat((q[..., :width], turned(q[..., width:], place, 2)), -1)
        down = x @ part.kv_down.weight.T
        kv = heads_of(unit(down[..., :rank], part.kv_norm.weight), part.kv_up.weight, None, heads)
        shared = turned(down[:, None, :, rank:], place, 2).expand(-1, heads, -1, -1)
        k = torch.cat((kv[..., :width], shared), -1)
        w = softmax(
            q @ k.transpose(-1, -2) / math.sqrt(width + 2), seen(segments, length, causal, None)
        )
        want = (w @ kv[..., width:]).transpose(1, 2).flatten(2) @ part.out.weight.T
    agrees(part, x, segments, want, causal)


@given(
    heads=st.sampled_from([(1, 1), (3, 1), (6, 3)]), width=st.sampled_from([1, 5]),
    queries=st.sampled_from([1, 2, 7]),
    memory=st.sampled_from([1, 4, 9]), softcap=st.sampled_from([None, 1.5]), qk_norm=qk_norms,
    masked=st.booleans(), bias=biases, gate=gates,
    beams=st.sampled_from([1, 3]), seed=st.integers(0, 9999),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_cross_attention_with_every_option(
    heads: tuple[int, int], width: int, queries: int, memory: int, softcap: float | None,
    qk_norm: Any, masked: bool, bias: Any, gate: Any,
    beams: int, seed: int,
) -> None:  # fmt: skip
    options = CrossAttentionOptions(
        num_heads=heads[0],
        kv_heads=heads[1],
        head_dim=width,
        softcap=softcap,
        qk_norm=qk_norm,
        scale=0.4,
        bias=without_gate(bias, gate),
        gate=gate,
    )
    part = drawn(options.build(LayerContext(DIM, 16)), seed)
    x, read = torch.randn(2 * beams, queries, DIM).double(), torch.randn(2, memory, DIM).double()
    keep = torch.rand(2, memory) < 0.6
    keep[:, -1] = True
    with torch.no_grad():
        of = projected(part, options, "q" if gate == "none" else "qg", part.q, x)
        of |= projected(part, options, "kv", part.kv, read.repeat_interleave(beams, 0))
        q, k = (normalised(part, options, name, of[name]) for name in "qk")
        v = of["v"].unflatten(-1, (heads[1], -1)).transpose(1, 2)
        k, v = (
            torch.stack([t[:, h * heads[1] // heads[0]] for h in range(heads[0])], 1)
            for t in (k, v)
        )
        scores = q @ k.transpose(-1, -2) * 0.4
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        mask = keep.repeat_interleave(beams, 0)[:, None].expand(-1, queries, -1)
        w = softmax(scores, mask if masked else torch.ones_like(mask))
        want = left(part, options, w @ v, of.get("g"))
        sequence = SequenceInfo(0, None, read, keep if masked else None)
        cache: dict[str, Tensor] = {}
        torch.testing.assert_close(part(x, sequence, cache), want, atol=1e-9, rtol=1e-7)
        # from the cache
        torch.testing.assert_close(part(x, sequence, cache), want, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(
            part.float()(
                x.float(), SequenceInfo(0, None, read.float(), sequence.memory_mask), {}
            ).double(),
            want,
            atol=3e-5,
            rtol=3e-4,
        )


RECURRENT: list[dict[str, Any]] = [
    {"type": "mamba2", "state": 3, "head_dim": 5, "groups": 2, "kernel": 3, "chunk": 4},
    {"type": "mamba2", "state": 1, "head_dim": 2, "expand": 1.0, "kernel": 9, "chunk": 64},
    {
        "type": "gated_deltanet",
        "num_heads": 3,
        "key_heads": 1,
        "key_dim": 3,
        "value_dim": 4,
        "chunk": 3,
    },
    {"type": "gated_deltanet", "num_heads": 1, "key_dim": 1, "kernel": 9, "chunk": 1},
    {"type": "convolution", "kernel": 9},
    {"type": "retention", "num_heads": 5, "chunk": 5},
    {"type": "retention", "num_heads": 1, "value_dim": 3},
]


@pytest.mark.parametrize("values", RECURRENT, ids=lambda v: f"{v['type']}-{len(v)}")
@pytest.mark.parametrize("kind", ["none", "packed", "padded"])
@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_recurrent_parts_alone_in_pieces_and_in_float32(
    values: dict[str, Any], kind: str, length: int
) -> None:
    """Each run of a segment by itself through a fresh state, one position at a time, is what all
    must give.
    """
    part = drawn(MIXERS[values["type"]].model_validate(values).build(LayerContext(DIM, 16)), length)
    x, segments = torch.randn(3, length, DIM).double(), documents(kind, 3, length)
    place = places(segments, length).expand(3, -1)
    want = torch.zeros_like(x)
    with torch.no_grad():
        for row in range(3):
            for t in range(length):
                if not place[row, t]:
                    cache = part.new_cache(1, 16)
                want[row, t] = part(
                    x[row : row + 1, t : t + 1], SequenceInfo(int(place[row, t])), cache
                )[0, 0]
    # of padding nothing is asked: what is on the right may know of what is on the left
    if kind == "padded":
        assert segments is not None
        real = segments == 1
        with torch.no_grad():
            torch.testing.assert_close(
                part(x, SequenceInfo(0, segments))[real], want[real], atol=2e-6, rtol=2e-6
            )
        return
    agrees(part, x, segments, want, True)
