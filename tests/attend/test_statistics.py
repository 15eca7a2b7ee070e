"""Statistics, maps and heaviest keys from tiles equal plain formulas over the dense weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bigmodel_cli.attend import statistics, stream, tiles
from bigmodel_cli.attend.layers import weights_of
from bigmodel_cli.attend.statistics import Pass
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.attend.sums import Sums
from bigmodel_cli.parts.fused import AttentionSpec
from bigmodel_cli.parts.kernels import attended
from bigmodel_cli.parts.watched import AttentionCall

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one query": {"queries": 1, "keys": 1},
    "both ways": {"causal": False},
    "window": {"window": 5},
    "window both ways": {"window": 4, "causal": False},
    "window beyond the text": {"window": 99},
    "grouped": {"heads": 6, "groups": 2},
    "one group, wide values": {"heads": 3, "groups": 1, "values": 13},
    "bias": {"bias": True},
    "sinks": {"sinks": True},
    "sinks in a window": {"sinks": True, "window": 6},
    "softcap": {"softcap": 2.0},
    "softcap, bias and sinks": {"softcap": 3.0, "bias": True, "sinks": True},
    "segments": {"segments": True},
    "segments both ways": {"segments": True, "causal": False},
    "padding": {"masked": 9, "causal": False},
    "cross": {"queries": 11, "keys": 29, "causal": False, "cross": True},
    "cross, padded": {"queries": 31, "keys": 17, "causal": False, "cross": True, "masked": 6},
    "with a cache": {"queries": 7, "keys": 30},
    "scale": {"scale": 0.5},
    "double": {"kind": torch.float64},
    "half": {"kind": torch.bfloat16},
    "differential": {"minus": 0.4, "heads": 6},
    "differential both ways": {"minus": 0.7, "causal": False},
}


def made(
    seed: int = 0,
    heads: int = 4,
    groups: int | None = None,
    queries: int = 37,
    keys: int = 37,
    values: int = 8,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    bias: bool = False,
    sinks: bool = False,
    segments: bool = False,
    masked: int = 0,
    minus: float | None = None,
    kind: torch.dtype = torch.float32,
    cross: bool = False,
) -> AttentionCall:
    """A call of a batch of two with what the kernel returns for it."""
    torch.manual_seed(seed)
    groups = groups or heads
    q = torch.randn(2, heads, queries, 8).to(kind)
    k, v = torch.randn(2, groups, keys, 8).to(kind), torch.randn(2, groups, keys, values).to(kind)
    if minus is not None:
        v = torch.cat((v[:, : groups // 2],) * 2, 1)
    more: dict[str, Any] = {}
    if segments:
        more["segments"] = torch.randint(3, (2, keys)).sort(1).values
    if masked:
        more["key_mask"] = torch.arange(keys).expand(2, -1) < keys - masked
    if bias:
        more["bias"] = torch.randn(heads, queries, keys)
    if sinks:
        more["sinks"] = torch.randn(heads)
    spec = AttentionSpec(causal, window, softcap, scale)
    output, sums = attended(q, k, v, spec, **more)
    factor = None if minus is None else torch.tensor(minus)
    return AttentionCall(q, k, v, spec, output, **more, minus=factor, log_sums=sums)


def dense(call: AttentionCall, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """(H, T, S) weights in double precision, one cell after the other; which are seen; sinks'."""
    q, k = call.q[row].double(), call.k[row].double()
    heads, queries, keys = len(q), q.shape[1], k.shape[1]
    scores = torch.full((heads, queries, keys), -math.inf, dtype=torch.float64)
    seen = torch.zeros(queries, keys, dtype=torch.bool)
    for i in range(queries):
        for j in range(keys):
            place = keys - queries + i
            ok = not (call.spec.causal and j > place)
            ok = ok and (call.spec.window is None or abs(place - j) < call.spec.window)
            if call.segments is not None:
                ok = ok and bool(call.segments[row, place] == call.segments[row, j])
            if call.key_mask is not None:
                ok = ok and bool(call.key_mask[row, j])
            seen[i, j] = ok
    for head in range(heads):
        own = q[head] @ k[head * len(k) // heads].T * (call.spec.scale or q.shape[-1] ** -0.5)
        if call.spec.softcap is not None:
            own = call.spec.softcap * torch.tanh(own / call.spec.softcap)
        if call.bias is not None:
            own = own + call.bias[head].double()
        scores[head][seen] = own[seen]
    beside = torch.zeros(heads, queries, dtype=torch.float64)
    if call.sinks is not None:
        column = call.sinks.double().view(-1, 1, 1).expand(-1, queries, 1)
        both = torch.cat((scores, column), -1).softmax(-1)
        weights, beside = both[..., :-1], both[..., -1]
    else:
        weights = scores.softmax(-1)
    if call.minus is not None:
        half = heads // 2
        weights, beside = weights[:half] - call.minus.double() * weights[half:], beside[:half]
    return weights, seen, beside


def figures(
    weights: Tensor, seen: Tensor, beside: Tensor, ids: list[int] | None, sizes: Tensor | None
) -> dict[str, list[list[float]]]:
    """Each figure of each head as a list over the queries that have it: plain loops."""
    names = ["entropy", "sink", "uniform", "own", "previous", "distance"]
    names += ["duplicate", "induction", "moved"]
    found: dict[str, list[list[float]]] = {name: [[] for _ in weights] for name in names}
    shift = weights.shape[2] - weights.shape[1]
    for head, rows in enumerate(weights.abs()):
        for i, row in enumerate(rows):
            total = float(row.sum() + beside[head, i])
            shares = [float(x) / total for x in row]
            places = [*(x for j, x in enumerate(shares) if seen[i, j])]
            if bool((beside > 0).any()):
                places.append(float(beside[head, i]) / total)
            entropy = -sum(x * math.log(x) for x in places if x > 0)
            found["entropy"][head].append(entropy)
            found["sink"][head].append(shares[0] + float(beside[head, i]) / total)
            if len(places) > 1:
                found["uniform"][head].append(entropy / math.log(len(places)))
            if sizes is not None:
                moved = row * sizes[head]
                found["moved"][head].append(float(moved[0] / moved.sum()))
            own = shift + i
            found["own"][head].append(shares[own] if 0 <= own < len(shares) else 0.0)
            if own > 0:
                found["previous"][head].append(shares[own - 1] if own <= len(shares) else 0.0)
            found["distance"][head].append(sum(x * abs(own - j) for j, x in enumerate(shares)))
            if ids is None:
                continue
            same = [j for j in range(own) if ids[j] == ids[own] and seen[i, j]]
            after = [j for j in range(1, own) if ids[j - 1] == ids[own] and seen[i, j]]
            if same:
                found["duplicate"][head].append(sum(shares[j] for j in same))
            if after:
                found["induction"][head].append(sum(shares[j] for j in after))
    return found


@pytest.fixture(params=[(256, 1024), (7, 6)], ids=["one tile", "many tiles"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that are larger than the whole, and such that do not divide it."""
    rows, keys = request.param
    monkeypatch.setattr(tiles, "KEYS", keys)
    monkeypatch.setattr(stream, "ROWS", rows)
    monkeypatch.setattr(statistics, "ROWS", rows)
    if rows < 256:
        monkeypatch.setattr(tiles, "AT_ONCE", 100)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("row", [0, 1])
def test_all_figures_equal_dense_ones(name: str, row: int) -> None:
    case = CASES[name]
    call, own = made(**case), not case.get("cross")
    weights, seen, beside = dense(call, row)
    heads, _queries, keys = weights.shape
    ids = torch.randint(6, (keys,))
    sizes = torch.rand(heads, keys) + 0.1 if call.minus is None else None
    got = Pass(Stream(call, row), own=own, ids=ids, sizes=sizes, top=4, resolution=9)
    want = figures(weights, seen, beside, ids.tolist(), sizes)
    for figure, by_head in want.items():
        value = getattr(got.statistics(), figure)
        if not own and figure in ("own", "previous", "distance", "duplicate", "induction"):
            assert value.isnan().all()
            continue
        if value is None:
            assert figure == "moved"
            assert sizes is None
            continue
        assert not bool(value[value == 0].signbit().any())  # which would be printed
        assert figure in ("entropy", "distance") or not bool((value > 1).any())
        for head, values in enumerate(by_head):
            mean = sum(values) / len(values) if values else math.nan
            assert float(value[head]) == pytest.approx(mean, abs=1e-6, rel=1e-6, nan_ok=True), (
                figure
            )
    size = weights.abs()
    received = (size.sum(1) / seen.sum(0)).float()
    torch.testing.assert_close(got.per_key(), received, atol=1e-6, rtol=0, equal_nan=True)
    if keys > 1:
        column = (size.sum(1)[:, 1:].amax(1) / (size.sum((1, 2)) + beside.sum(1))).float()
        torch.testing.assert_close(got.statistics().column, column, atol=1e-6, rtol=0)
    limit = 0.02 if call.q.dtype == torch.bfloat16 else 1e-5
    assert got.difference < limit
    most = min(4, keys)
    torch.testing.assert_close(
        got.top[1].abs(), size.topk(most, -1).values.float(), atol=1e-6, rtol=0
    )
    at = weights.gather(2, got.top[0]).float()
    torch.testing.assert_close(torch.where(got.top[1] == 0, 0.0, at), got.top[1], atol=1e-6, rtol=0)
    check_maps(got, weights, seen)


def check_maps(got: Pass, weights: Tensor, seen: Tensor) -> None:
    """Blocks of the largest weights and the means of those seen."""
    maps = got.maps.blocks()
    assert maps is not None
    assert maps is not None
    rows, columns = maps.rows, maps.columns
    assert max(maps.most.shape[1:]) <= 9
    for r in range(-(-weights.shape[1] // rows)):
        for c in range(-(-weights.shape[2] // columns)):
            where = (slice(r * rows, (r + 1) * rows), slice(c * columns, (c + 1) * columns))
            for head in range(len(weights)):
                cells = weights[head][where][seen[where]]
                most, mean = float(maps.most[head, r, c]), float(maps.mean[head, r, c])
                if not len(cells):
                    assert math.isnan(most)
                    assert math.isnan(mean)
                    continue
                assert abs(most) == pytest.approx(float(cells.abs().max()), abs=1e-6)
                assert mean == pytest.approx(float(cells.mean()), abs=1e-6)


def test_sampled_queries_are_unbiased_with_intervals_that_hold() -> None:
    """Means of many samples are the whole's, and 95 % intervals have it about as often."""
    call = made(queries=61, keys=61)
    stream = Stream(call)
    whole = Pass(stream).statistics()
    names = ("entropy", "sink", "previous", "distance", "uniform")
    held = dict.fromkeys(names, 0)
    means: dict[str, list[Tensor]] = {name: [] for name in names}
    for seed in range(120):
        drawn = torch.Generator().manual_seed(seed)
        rows = torch.randperm(61, generator=drawn)[:20].sort().values
        got = Pass(stream, rows=rows, resolution=4).statistics()
        for name in names:
            mean, true = getattr(got, name), getattr(whole, name)
            means[name].append(mean)
            held[name] += int(((mean - true).abs() <= got.half[name]).sum())
    for name in names:
        stacked, true = torch.stack(means[name]), getattr(whole, name)
        error = stacked.std(0) / math.sqrt(120)
        assert bool(((stacked.mean(0) - true).abs() < 4 * error).all()), name
        assert 0.85 < held[name] / 480 <= 1, (name, held[name])


def test_windows_count_by_their_lengths_however_many_of_their_queries_are_looked_at() -> None:
    """Of a short window all queries, of longer ones a part; and one of a single key."""
    halves, means, lengths = [], [], (1, 12, 40, 40)
    of = [torch.rand(2, n, dtype=torch.float64) + n for n in lengths]
    whole = torch.cat(of, 1).mean(1)
    for seed in range(300):
        drawn = torch.Generator().manual_seed(seed)
        joined: Sums | None = None
        for values in of:
            rows = torch.randperm(values.shape[1], generator=drawn)[:10]
            sums = Sums(values.shape[1], len(rows))
            sums.add("entropy", values[:, rows])
            if values.shape[1] > 1:
                sums.column = values.max(1).values
            if joined is not None:
                sums.join(joined)
            joined = sums
        assert joined is not None
        assert (joined.all, joined.looked) == (93, 31)
        means.append(joined.mean("entropy"))
        halves.append(joined.half("entropy"))
    found = torch.stack([m for m in means if m is not None]).double()
    torch.testing.assert_close(found.mean(0), whole, atol=0.02, rtol=0)
    inside = (found - whole).abs() <= torch.stack(halves)
    assert float(inside.double().mean()) > 0.93
    want = sum(x.max(1).values * n for x, n in zip(of[1:], lengths[1:], strict=True)) / 93
    assert joined.column is not None
    torch.testing.assert_close(joined.column, want)


def test_a_sample_of_all_queries_is_exact() -> None:
    stream = Stream(made())
    got = Pass(stream, rows=torch.arange(37)).statistics()
    assert got.half == {}
    torch.testing.assert_close(got.entropy, Pass(stream).statistics().entropy)


def test_equal_shares_of_a_small_sample_are_not_taken_for_certain() -> None:
    sums = Sums(all=100, looked=20)
    sums.add("sink", torch.tensor([[0.0] * 20, [0.3] * 20]))
    sums.add("entropy", torch.zeros(1, 20))
    share = sums.half("sink") / 0.8  # of 80 queries that were not drawn
    # so large a share of queries of another kind would have been met nine times in ten
    assert bool(((1 - share).pow(20) < 0.1).all())
    assert bool((share < 0.2).all())
    assert float(sums.half("entropy")) == 0
    few = Sums(all=1_000_000_000, looked=3)
    few.add("distance", torch.tensor([[0.0, 1.0, 2.0]]))
    assert float(few.half("distance")) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)


@pytest.mark.parametrize("kind", [torch.bool, torch.long])
def test_a_row_whose_keys_are_all_hidden_weighs_nothing(kind: torch.dtype) -> None:
    call = AttentionCall(
        *torch.randn(3, 1, 2, 5, 4), AttentionSpec(causal=False), torch.zeros(1, 2, 5, 4)
    )
    stream = Stream(replace(call, key_mask=torch.zeros(1, 5, dtype=kind)))
    assert float(weights_of(stream, [0, 1]).abs().max()) == 0
