"""What a page carries of a head gives the weights back, by a reading written anew."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bigmodel_cli.attend.details import Detail, Details, of_matrix
from bigmodel_cli.attend.scores import Scores, factored
from bigmodel_cli.parts.fused import AttentionSpec
from bigmodel_cli.parts.watched import AttentionCall

CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "one position": {"tokens": 1, "keys": 1},
    "cross": {"tokens": 7, "keys": 31, "causal": False},
    "cached": {"tokens": 5, "keys": 23},
    "window": {"tokens": 33, "keys": 33, "window": 6},
    "window to both sides": {"tokens": 29, "keys": 29, "window": 4, "causal": False},
    "wide window": {"tokens": 9, "keys": 9, "window": 50},
    "grouped": {"heads": 6, "groups": 2},
    "softcap": {"softcap": 3.0, "size": 3.0},
    "scale": {"scale": 0.05},
    "sinks": {"sinks": True},
    "bias": {"bias": "distances"},
    "free bias": {"bias": "free", "causal": False},
    "documents": {"segments": True},
    "padding": {"mask": True, "causal": False},
    "differential": {"heads": 4, "minus": True},
    "sharp": {"size": 4.0},
}


def call_of(
    tokens: int = 19, keys: int | None = None, heads: int = 3, groups: int | None = None,
    causal: bool = True, window: int | None = None, softcap: float | None = None,
    scale: float | None = None, size: float = 1.0, width: int = 8, sinks: bool = False,
    bias: str = "", segments: bool = False, mask: bool = False, minus: bool = False,
) -> AttentionCall:  # fmt: skip
    """A call of one row by these options."""
    generator = torch.Generator().manual_seed(tokens + heads)
    keys = keys or tokens

    def drawn(*shape: int) -> Tensor:
        return size * torch.randn(*shape, generator=generator)

    q, k = drawn(1, heads, tokens, width), drawn(1, groups or heads, keys, width)
    vector = drawn(heads, tokens + keys - 1)
    far = torch.arange(keys)[None, :] - torch.arange(tokens)[:, None] + tokens - 1
    return AttentionCall(
        q, k, k, AttentionSpec(causal, window, softcap, scale), q,
        (torch.arange(keys) // 4)[None] if segments else None,
        (torch.arange(keys) % 3 > 0)[None] if mask else None,
        {"": None, "distances": vector[:, far], "free": drawn(heads, tokens, keys)}[bias],
        drawn(heads) if sinks else None,
        torch.tensor(0.3) if minus else None,
    )  # fmt: skip


def plain(call: AttentionCall) -> Tensor:
    """(H, T, S)   the weights by the formula, in float64; NaN where nothing is seen."""
    q, k = call.q[0].double(), call.k[0].double()
    k = k.repeat_interleave(len(q) // len(k), 0)
    scores = torch.einsum("htd,hsd->hts", q, k) * (call.spec.scale or q.shape[-1] ** -0.5)
    if call.spec.softcap:
        scores = call.spec.softcap * torch.tanh(scores / call.spec.softcap)
    if call.bias is not None:
        scores = scores + call.bias
    seen = seen_of(call)
    scores = torch.where(seen, scores, -math.inf)
    total = scores.exp().sum(-1, keepdim=True)
    if call.sinks is not None:
        total = total + call.sinks.double().exp()[:, None, None]
    found = scores.exp() / total
    if call.minus is not None:
        first, second = found.chunk(2)
        found = first - call.minus * second
    return torch.where(seen, found, math.nan)


def seen_of(call: AttentionCall) -> Tensor:
    tokens, keys = call.q.shape[2], call.k.shape[2]
    own = torch.arange(tokens)[:, None] + keys - tokens
    back = own - torch.arange(keys)[None, :]
    seen = torch.ones(tokens, keys, dtype=torch.bool)
    if call.spec.causal:
        seen = seen & (back >= 0)
    if call.spec.window:
        seen = seen & (back.abs() < call.spec.window)
    if call.segments is not None:
        seen = seen & (call.segments[0][own] == call.segments[0][None, :])
    if call.key_mask is not None:
        seen = seen & call.key_mask[0]
    return seen


def numbers(packed: bytes, kind: str) -> Any:
    return np.frombuffer(zlib.decompress(packed, wbits=-15), kind)


def read_back(detail: Detail) -> Any:
    """(T, S)   the weights that a detail holds, 0 where nothing is seen."""
    facts, tokens, keys = detail.facts, detail.facts["queries"], detail.facts["keys"]
    back = np.arange(tokens)[:, None] + keys - tokens - np.arange(keys)[None, :]
    seen = np.ones((tokens, keys), bool)
    if facts["causal"]:
        seen &= back >= 0
    if facts["window"]:
        seen &= np.abs(back) < facts["window"]
    found = np.zeros((tokens, keys))
    if detail.form == "map":
        codes = numbers(detail.arrays["codes"], "u1").astype(float)
        root = (codes - 128) / 127 if facts["signed"] else codes / 255
        found[seen] = np.sign(root) * root**2 * facts["peak"]
    else:
        sides = []
        for name, count in (("q", tokens), ("k", keys)):
            low, high = numbers(detail.arrays[name], "u1").reshape(2, -1, count).astype(int)
            folded = low + 256 * high
            sides.append(np.where(folded % 2, -(folded + 1) // 2, folded // 2))
        scores = (sides[0].T * numbers(detail.arrays["steps"], "f4")) @ sides[1]
        if facts["softcap"]:
            scores = facts["softcap"] * np.tanh(scores / facts["softcap"])
        if "bias" in detail.arrays:
            scores = (
                scores + numbers(detail.arrays["bias"], "f4")[tokens - 1 - back + keys - tokens]
            )
        if "segments" in detail.arrays:
            segments = numbers(detail.arrays["segments"], "i4")
            seen &= segments[np.arange(tokens)[:, None] + keys - tokens] == segments
        if "key_mask" in detail.arrays:
            seen &= numbers(detail.arrays["key_mask"], "u1") > 0
        low, middle, high = numbers(detail.arrays["sums"], "u1").reshape(3, -1).astype(int)
        sums = (low + 256 * middle + 65536 * (high - 256 * (high > 127))) * facts["sum_step"]
        found = np.where(seen, np.exp(scores - sums[:, None]), 0)
        rows = np.repeat(np.arange(tokens), numbers(detail.arrays["counts"], "i4"))
        columns = 256 ** np.arange(3) @ numbers(detail.arrays["places"], "u1").reshape(3, -1)
        values = 256 ** np.arange(2) @ numbers(detail.arrays["values"], "u1").reshape(2, -1)
        found[rows, columns] = values / 65535
    if detail.minus is not None:
        found = found - detail.factor * read_back(detail.minus)
    return found


@pytest.mark.parametrize("form", ["map", "scores"])
@pytest.mark.parametrize("case", CASES)
def test_weights_come_back(case: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(**CASES[case])
    if form == "scores":
        monkeypatch.setattr("bigmodel_cli.attend.details.MOST_ENTRIES", 0)
    details = Details()
    details.see("a", call)
    exact = plain(call).nan_to_num(0)
    if form == "scores" and case == "free bias":
        assert details.found["a"] == {}
        assert details.left_out == 3
        return
    assert sorted(details.found["a"]) == list(range(len(exact)))
    for head, detail in details.found["a"].items():
        assert detail.form == form
        assert np.abs(read_back(detail) - exact[head].numpy()).max() <= 1 / 255


@pytest.mark.parametrize("size", [0.3, 1.0, 2.5])
def test_factors_keep_every_weight(size: float) -> None:
    call = call_of(tokens=400, heads=2, groups=1, width=16, size=size)
    exact = plain(call).nan_to_num(0)
    found = factored([Scores.of(call, head) for head in range(2)])
    assert found is not None
    assert torch.equal(found[0].keys, found[1].keys)
    seen = seen_of(call)
    for head, factors in enumerate(found):
        scores = (factors.queries.double() * factors.steps) @ factors.keys.double().T
        weights = torch.where(seen, (scores - factors.sums[:, None]).exp(), 0)
        errors = (weights - exact[head]).abs()
        rows, columns = factors.places.unbind(1)
        assert (exact[head][rows, columns] - factors.values).abs().max() <= 1e-5
        errors[rows, columns] = 0
        assert errors.max() == pytest.approx(factors.error, abs=1e-5)
        assert 0 < factors.error <= 1 / 512
        assert len(rows) < 400 * 48
        assert (scores - factors.sums[:, None] - exact[head].log())[seen].std() < 0.15


def test_keys_of_a_group_are_carried_once_and_only_wanted_heads_are_kept() -> None:
    call = call_of(tokens=300, heads=4, groups=2, width=4, size=0.2)
    details = Details(wanted=lambda name, head: head != 1)
    details.see("a", call)
    found = details.found["a"]
    assert sorted(found) == [0, 2, 3]
    assert found[2].form == "scores"  # 45,150 weights against 300 x 8 numbers
    assert found[2].arrays["k"] == found[3].arrays["k"] != found[0].arrays["k"]


def test_a_signed_matrix_keeps_its_signs() -> None:
    matrix = torch.randn(9, 9).tril() * 3
    detail = of_matrix(matrix, causal=True)
    assert detail.facts["signed"]
    peak = float(matrix.abs().max())
    assert np.abs(read_back(detail) - matrix.numpy()).max() <= peak / 100
