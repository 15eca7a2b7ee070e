"""Attention that is watched: the same output, bit for bit, and the log-sums of its own kernel."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from bigmodel_cli.attend.capture import watch
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.parts.flex import flex
from bigmodel_cli.parts.kernels import AttentionSpec, attend, attended
from bigmodel_cli.parts.log_sums import GIVING
from bigmodel_cli.parts.watched import AttentionCall

T = 23
KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "both ways": {"causal": False},
    "grouped": {"heads": 6, "groups": 3},
    "other scale": {"scale": 0.7},
    "wide values": {"values": 14},
    "narrow values": {"values": 4},
    "window": {"window": 6},
    "window in blocks": {"window": 17, "length": 37},
    "window in small blocks": {"window": 4, "length": 31},
    "window both ways": {"window": 5, "causal": False},
    "segments": {"segments": True},
    "padding": {"hidden": 7, "causal": False},
    "a row that sees nothing": {"hidden": T, "causal": False},
    "cross": {"queries": 18, "length": 33, "causal": False},
    "with a cache": {"queries": 17, "length": 40},
    "sinks": {"sinks": True},
    "sinks in a window": {"sinks": True, "window": 4, "length": 33},
    "sinks and padding": {"sinks": True, "hidden": 5, "causal": False},
    "bias": {"bias": True},
    "bias and window": {"bias": True, "window": 9},
    "few queries": {"queries": 3, "length": 30},
    "softcap": {"softcap": 2.5},
}
EAGER = {"softcap"}
"""Those that a CPU computes by the formula."""
FEW = {"few queries", "window", "window in small blocks"}
"""Those that it so computes in fp32, as they have few queries."""


def drawn(
    kind: torch.dtype,
    *,
    heads: int = 3,
    groups: int | None = None,
    length: int = T,
    queries: int | None = None,
    values: int = 10,
    hidden: int = 0,
    **more: Any,
) -> tuple[tuple[Tensor, Tensor, Tensor, AttentionSpec], dict[str, Tensor | None]]:
    """What attention takes, of a batch of two."""
    generator = torch.Generator().manual_seed(5)
    groups, queries = groups or heads, queries or length

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(kind)

    q, k = normal(2, heads, queries, 10), normal(2, groups, length, 10)
    v = normal(2, groups, length, values)
    masks = dict[str, Tensor | None](segments=None, key_mask=None, bias=None, sinks=None)
    if more.get("segments"):
        masks["segments"] = torch.tensor([0] * 9 + [1] * (length - 9)).repeat(2, 1)
    if hidden:
        masks["key_mask"] = torch.stack((torch.arange(length) >= hidden, torch.arange(length) >= 1))
    if more.get("bias"):
        masks["bias"] = normal(heads, queries, length)
    if more.get("sinks"):
        masks["sinks"] = normal(heads)
    rules = AttentionSpec(
        more.get("causal", True), more.get("window"), more.get("softcap"), more.get("scale")
    )
    return (q, k, v, rules), masks


def log_sums(
    q: Tensor, k: Tensor, spec: AttentionSpec, masks: dict[str, Tensor | None]
) -> list[list[list[float]]]:
    """One query after the other, in double precision."""
    found = []
    shift = k.shape[2] - q.shape[2]
    for row in range(len(q)):
        of_row = []
        for head in range(q.shape[1]):
            keys, sums = k[row, head * k.shape[1] // q.shape[1]].double(), []
            for i, query in enumerate(q[row, head].double()):
                own = shift + i
                terms = [] if masks["sinks"] is None else [float(masks["sinks"][head])]
                for j, key in enumerate(keys):
                    ok = not (spec.causal and j > own)
                    ok = ok and (spec.window is None or abs(own - j) < spec.window)
                    for name in ("segments", "key_mask"):
                        mark = masks[name]
                        if mark is not None and name == "segments":
                            ok = ok and bool(mark[row, own] == mark[row, j])
                        elif mark is not None:
                            ok = ok and bool(mark[row, j])
                    if not ok:
                        continue
                    score = float(query @ key) * (spec.scale or 1 / math.sqrt(len(key)))
                    if masks["bias"] is not None:
                        score += float(masks["bias"][head, i, j])
                    terms.append(score)
                sums.append(math.log(sum(map(math.exp, terms))) if terms else math.nan)
            of_row.append(sums)
        found.append(of_row)
    return found


@pytest.mark.parametrize("grown", [False, True], ids=["inference", "with gradients"])
@pytest.mark.parametrize("kind", KINDS, ids=[str(kind).removeprefix("torch.") for kind in KINDS])
@pytest.mark.parametrize("name", CASES)
def test_the_watched_output_is_the_same_bits(name: str, kind: torch.dtype, grown: bool) -> None:
    (q, k, v, spec), masks = drawn(kind, **CASES[name])
    with torch.inference_mode(not grown):
        q, k, v = (x.clone().requires_grad_(grown) for x in (q, k, v))
        want, found = attend(q, k, v, spec, **masks), attended(q, k, v, spec, **masks)
    assert torch.equal(found.output.nan_to_num(7), want.nan_to_num(7))
    if grown:
        ours, theirs = (torch.autograd.grad(y.sum(), (q, k, v)) for y in (found.output, want))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    if found.log_sums is not None:
        assert kind in (torch.float32, torch.float64)


@pytest.mark.parametrize("kind", KINDS[:2], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_log_sums_are_those_of_the_scores(name: str, kind: torch.dtype) -> None:
    (q, k, v, spec), masks = drawn(kind, **CASES[name])
    with torch.inference_mode():
        found = attended(q, k, v, spec, **masks).log_sums
    if name in EAGER or (name in FEW and kind == torch.float32):
        assert found is None
        return
    assert found is not None
    want = torch.tensor(log_sums(q, k, spec, masks), dtype=torch.float64)
    there = ~want.isnan()
    assert bool(there.any())
    torch.testing.assert_close(found.double()[there], want[there], atol=2e-6, rtol=0)


def test_autocast_rounds_queries_so_that_its_log_sums_are_not_theirs() -> None:
    (q, k, v, spec), masks = drawn(torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = attended(q, k, v, spec, **masks)
        assert torch.equal(found.output, attend(q, k, v, spec, **masks))
    assert found.log_sums is None


def test_flex_gives_them_too() -> None:
    (q, k, v, spec), masks = drawn(torch.float32, window=6, groups=1)
    with torch.no_grad():
        plain = flex(q, k, v, spec, None, None)
        asked = flex(q, k, v, spec, None, None, asked=True)
    assert plain.log_sums is None
    assert asked.log_sums is not None
    assert torch.equal(asked.output, plain.output)
    want = torch.tensor(log_sums(q, k, spec, masks))
    torch.testing.assert_close(asked.log_sums, want, atol=2e-6, rtol=0)


def test_the_kernels_that_give_them_are_pytorchs() -> None:
    """Of the kernels for CUDA too: where they have the argument, and what comes second."""
    for name, place in GIVING.items():
        schema = getattr(torch.ops.aten, name).default._schema
        assert schema.returns[1].name.replace("_", "") == "logsumexp"
        if place is None:
            assert all(argument.name != "compute_log_sumexp" for argument in schema.arguments)
        else:
            assert schema.arguments[place].name == "compute_log_sumexp"


def test_a_look_reads_the_log_sums_of_the_models_own_pass() -> None:
    """The kernel runs once for each layer, and no pass over the scores is made for them."""
    mixer = {"type": "attention", "num_heads": 4, "kv_heads": 2}
    values = {"dim": 32, "vocab_size": 19, "blocks": [{"repeat": 3, "mixer": mixer, "ffn": "gelu"}]}
    model = Decoder(DecoderOptions.model_validate(values), DatasetInfo(context=40)).eval()
    tokens, seen = torch.arange(38)[None] % 19, list[AttentionCall]()
    with torch.inference_mode(), patch.object(Stream, "_first_pass") as pass_over:
        want = model(tokens)
        with watch(model, lambda name, part, call: seen.append(call)):
            assert torch.equal(model(tokens), want)
        for call in seen:
            assert call.log_sums is not None
            assert torch.equal(Stream(call).lse, call.log_sums[0])
    assert len(seen) == 3
    pass_over.assert_not_called()
