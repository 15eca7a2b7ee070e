"""The matrix that a mixer implies, against its recurrence fed with basis vectors, gates frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.contract import mixing
from bigmodel_cli.parts.convolution import ConvolutionOptions
from bigmodel_cli.parts.gated_deltanet import GatedDeltaNetOptions
from bigmodel_cli.parts.mamba2 import Mamba2Options
from bigmodel_cli.parts.mixing import SIZE, MixingCall
from bigmodel_cli.parts.parallel import ParallelOptions
from bigmodel_cli.parts.retention import RetentionOptions

DIM = 12
OPTIONS = {
    "mamba2": Mamba2Options(state=5, head_dim=4, groups=2, kernel=3, chunk=7),
    "gated_deltanet": GatedDeltaNetOptions(num_heads=4, key_heads=2, key_dim=3, value_dim=5),
    "retention": RetentionOptions(num_heads=3, value_dim=7),
}


def built(name: str, seed: int = 0, longest: int = 400) -> torch.nn.Module:
    torch.manual_seed(seed)
    part = OPTIONS[name].build(LayerContext(DIM, longest)).double()
    for parameter in part.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return part.eval()


def watched(part: torch.nn.Module, x: Tensor, sequence: SequenceInfo) -> MixingCall:
    calls: list[MixingCall] = []
    part.mixing_watcher = calls.append
    with torch.no_grad():
        part(x, sequence)
    part.mixing_watcher = None
    return calls[0]


def convolved(x: Tensor, conv: torch.nn.Module, segments: Tensor) -> Tensor:
    """(T, C)   tap by tap and position by position."""
    y = torch.zeros_like(x) if conv.bias is None else conv.bias.expand_as(x).clone()
    for i in range(len(x)):
        for back in range(conv.kernel):
            j = i - back
            if j >= 0 and segments[j] == segments[i]:
                y[i] += x[j] * conv.weight[:, conv.kernel - 1 - back]
    return y


def heads_of(name: str, part: torch.nn.Module, x: Tensor, segments: Tensor) -> list[Tensor]:
    """q, k (H, T, N), decay, beta, size (H, T), skip (H), values (H, T, P), from the weights."""
    length = len(x)
    ones = torch.ones(1, length, dtype=x.dtype)
    if name == "mamba2":
        inner, shared, heads = part.inner, 10, part.heads
        mixed, dt = (x @ part.input.weight.T)[:, inner:].split([inner + 2 * shared, heads], 1)
        mixed = functional.silu(convolved(mixed, part.conv, segments))
        v, b, c = mixed.split([inner, shared, shared], 1)
        size = functional.softplus(dt + part.dt_bias).T
        q, k = (
            t.view(length, 2, 5).transpose(0, 1).repeat_interleave(heads // 2, 0) for t in (c, b)
        )
        decay = -part.log_a.exp()[:, None] * size
        values = v.view(length, heads, 4).transpose(0, 1)
        return [q, k, decay, ones.expand(heads, -1), size, part.d, values]
    if name == "gated_deltanet":
        qkv = functional.silu(convolved(x @ part.qkv.weight.T, part.conv, segments))
        q, k, v = qkv.split([6, 6, 20], 1)
        q, k = (t.view(length, 2, 3).transpose(0, 1) for t in (q, k))
        q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
        q, k = q.repeat_interleave(2, 0) / 3**0.5, k.repeat_interleave(2, 0)
        beta, rate = (x @ part.rates.weight.T).T.split([4, 4])
        decay = -part.log_a.exp()[:, None] * functional.softplus(rate + part.dt_bias[:, None])
        values = v.view(length, 4, 5).transpose(0, 1)
        return [q, k, decay, beta.sigmoid(), ones.expand(4, -1), torch.zeros(4), values]
    q, k, v = (x @ part.qkv.weight.T).split([12, 12, 21], 1)
    q, k = (t.view(length, 3, 4).transpose(0, 1) for t in (q, k))
    place = torch.zeros(length, dtype=torch.long)
    for i in range(1, length):
        place[i] = place[i - 1] + 1 if segments[i] == segments[i - 1] else 0
    angle = place[:, None] * 10000.0 ** -torch.tensor([0.0, 1.0], dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()

    def turned(t: Tensor) -> Tensor:
        a, b = t[..., :2], t[..., 2:]
        first, second = a * cos - b * sin, a * sin + b * cos
        return torch.cat((first, second), -1)  # any order of channels: only products matter

    logs = torch.log(1 - 2.0 ** (-5.0 - torch.arange(3, dtype=torch.float64)))
    values = v.view(length, 3, 7).transpose(0, 1)
    return [
        turned(q) / 2, turned(k), logs[:, None].expand(3, length), ones.expand(3, -1),
        ones.expand(3, -1), torch.zeros(3), values,
    ]  # fmt: skip


def implied(name: str, part: torch.nn.Module, x: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
    """(H, T, T), (H, T, P)   the recurrence step by step on the unit vectors, and the values."""
    q, k, decay, beta, size, skip, values = heads_of(name, part, x, segments)
    heads, length = decay.shape
    unit = torch.eye(length, dtype=x.dtype)
    state = torch.zeros(heads, q.shape[-1], length, dtype=x.dtype)
    rows = []
    for t in range(length):
        if t and segments[t] != segments[t - 1]:
            state = torch.zeros_like(state)
        state = decay[:, t].exp()[:, None, None] * state
        new = unit[t].expand(heads, -1) * size[:, t, None]
        if name == "gated_deltanet":
            new = beta[:, t, None] * (new - torch.einsum("hn,hnj->hj", k[:, t], state))
        state = state + k[:, t, :, None] * new[:, None]
        rows.append(torch.einsum("hn,hnj->hj", q[:, t], state) + skip[:, None] * unit[t])
    return torch.stack(rows, 1), values


def segments_of(length: int, packed: bool) -> Tensor:
    ids = torch.zeros(length, dtype=torch.long)
    if packed:
        for first in (length // 3, 2 * length // 3 + 1, length - 1):
            ids[first:] += 1
    return ids


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 3, SIZE + 5])
@pytest.mark.parametrize("name", OPTIONS)
def test_matrix_is_the_recurrence_on_unit_vectors(name: str, length: int, packed: bool) -> None:
    part = built(name)
    x = torch.randn(2, length, DIM, dtype=torch.float64)
    ids = torch.stack((torch.zeros(length).long(), segments_of(length, packed)))
    call = watched(part, x, SequenceInfo(0, ids if packed else None))
    for row in range(2):
        with torch.no_grad():
            want, values = implied(name, part, x[row], ids[row])
        matrix = call.matrix(row)
        every, rows = slice(0, matrix.heads), torch.arange(length)
        got = matrix.tile(matrix.begin(rows), every, slice(0, length))
        close = 1e-10 if name != "retention" else 1e-5  # whose table of angles is in fp32
        assert torch.allclose(got, want, atol=close)
        assert not got[:, ids[row][:, None] != ids[row][None]].any()
        assert torch.allclose(matrix.values(every, slice(0, length)), values, atol=1e-12)
        assert torch.allclose(got @ values, matrix.outputs(every, rows), atol=1e-9)


@pytest.mark.parametrize("name", OPTIONS)
def test_tiles_of_sampled_rows_are_the_whole_matrix_cut(name: str) -> None:
    """Beyond `KEPT` chunks, with spans that begin and end anywhere, for some of the heads."""
    length = 17 * SIZE + 9
    part = built(name, 1, length)
    call = watched(part, 0.3 * torch.randn(1, length, DIM).double(), SequenceInfo())
    matrix = call.matrix()
    rows = torch.tensor([0, 5, 64, 700, length - 70, length - 1])
    begun = matrix.begin(rows)
    whole = matrix.tile(begun, slice(0, matrix.heads), slice(0, length))
    values = matrix.values(slice(0, matrix.heads), slice(0, length))
    outputs = matrix.outputs(slice(0, matrix.heads), rows)
    assert torch.allclose(whole @ values, outputs, atol=1e-9 * float(outputs.abs().max() + 1))
    for start, stop in ((0, 1), (63, 65), (100, 900), (1020, 1030), (length - 3, length)):
        got = matrix.tile(begun, slice(1, 3), slice(start, stop))
        assert torch.allclose(got, whole[1:3, :, start:stop], atol=1e-12)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 2, 41])
def test_a_gated_convolution_is_a_band(length: int, packed: bool) -> None:
    torch.manual_seed(3)
    part = ConvolutionOptions(kernel=4, bias=True).build(LayerContext(DIM, 64)).double()
    part.conv.bias.data.normal_()
    x = torch.randn(1, length, DIM, dtype=torch.float64)
    ids = segments_of(length, packed)[None]
    call = watched(part, x, SequenceInfo(0, ids if packed else None))
    gate = (x[0] @ part.input.weight.T + part.input.bias)[:, :DIM]
    want = torch.zeros(DIM, length, length, dtype=torch.float64)
    for i in range(length):
        for j in range(max(0, i - 3), i + 1):
            if ids[0, i] == ids[0, j]:
                want[:, i, j] = part.conv.weight[:, 3 - (i - j)] * gate[j]
    matrix, rows = call.matrix(), torch.arange(length)
    got = matrix.tile(matrix.begin(rows), slice(0, 1), slice(0, length))
    assert torch.allclose(got[0], want.detach().abs().mean(0), atol=1e-12)
    assert matrix.difference() < 1e-12
    by_place = matrix.channels(rows)
    for back in range(min(4, length)):
        diagonal = want.diagonal(-back, 1, 2)
        assert torch.allclose(by_place[:, back:, 3 - back], diagonal, atol=1e-12)


def test_a_wrong_output_shows_in_the_difference_of_a_convolution() -> None:
    part = ConvolutionOptions(kernel=3).build(LayerContext(DIM, 64))
    call = watched(part, torch.randn(1, 9, DIM), SequenceInfo())
    call.output[0, 0, 4, 2] += call.output.abs().max()
    assert call.matrix().difference() > 0.1


def test_mixers_side_by_side_are_each_found_and_what_a_watcher_returns_replaces_the_output() -> (
    None
):
    torch.manual_seed(0)
    mixers = [OPTIONS["mamba2"], OPTIONS["retention"]]
    part = ParallelOptions(mixers=mixers, scales=[1.0, 0.5]).build(LayerContext(DIM, 64))
    assert list(mixing(part)) == ["mixers.0", "mixers.1"]
    x = torch.randn(1, 6, DIM)
    part.mixers[0].mixing_watcher = lambda call: torch.zeros_like(call.output)
    alone = 0.5 * part.mixers[1](x)
    assert torch.allclose(part(x), alone, atol=1e-6)


@pytest.mark.parametrize("name", [*OPTIONS, "convolution"])
def test_a_call_with_a_state_says_so(name: str) -> None:
    options = OPTIONS.get(name, ConvolutionOptions())
    part, calls = options.build(LayerContext(DIM, 64)), []
    part.mixing_watcher = calls.append
    cache, x = part.new_cache(1, 8), torch.randn(1, 3, DIM)
    part(x, SequenceInfo(), cache)
    part(x, SequenceInfo(3), cache)
    assert [call.carried for call in calls] == [False, True]
