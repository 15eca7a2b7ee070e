"""Each part divided among 2, 4 and 8 computes what it computes whole: output and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from local_teams import Planned, alike, divided, one_of
from torch import Tensor, nn

from bigmodel_cli.errors import SpecError
from bigmodel_cli.parts import FFNS, MIXERS, CrossAttentionOptions
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.shares import ALONE, Division, divide

DIM, LENGTH, BATCH = 24, 11, 3
CLOSE = 1e-6
SIZES = [2, 4, 8]

MIXER_CASES: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {"num_heads": 8, "head_dim": 3},
        {"num_heads": 8, "head_dim": 6, "kv_heads": 2, "position": {"type": "rotary"}},
        {"num_heads": 16, "head_dim": 2, "kv_heads": 1, "gate": "full", "bias": ["q", "v", "o"]},
        {"num_heads": 8, "head_dim": 3, "gate": "head", "bias": False, "window": 4, "sinks": True},
        {"num_heads": 8, "head_dim": 4, "kv_heads": 4, "qk_norm": True, "softcap": 3.0},
        {"num_heads": 8, "head_dim": 5, "kv_heads": 2, "qk_norm": {"over": "full"}},
        {
            "num_heads": 16,
            "head_dim": 3,
            "kv_heads": 8,
            "qk_norm": {"over": "full", "offset": True},
        },
        {"num_heads": 8, "head_dim": 3, "position": {"type": "alibi"}},
        {
            "num_heads": 8,
            "head_dim": 3,
            "position": {"type": "t5", "buckets": 6, "max_distance": 9},
        },
    ],
    "mla": [
        {"num_heads": 8, "kv_rank": 7, "rotary_dim": 4, "head_dim": 3, "value_dim": 5},
        {"num_heads": 16, "kv_rank": 5, "q_rank": 9, "rotary_dim": 2, "head_dim": 3},
    ],
    "differential": [
        {"num_heads": 8, "head_dim": 3},
        {"num_heads": 8, "head_dim": 4, "position": {"type": "rotary"}},
    ],
    "mamba2": [
        {"state": 5, "head_dim": 3, "chunk": 4},
        {"state": 3, "head_dim": 3, "groups": 2, "kernel": 3, "chunk": 8},
        {"state": 3, "head_dim": 3, "groups": 8, "chunk": 8},
    ],
    "gated_deltanet": [
        {"num_heads": 8, "key_dim": 3, "value_dim": 5, "chunk": 4},
        {"num_heads": 8, "key_heads": 2, "key_dim": 3, "chunk": 4},
    ],
    "convolution": [{"kernel": 3}, {"kernel": 5, "bias": True}],
    "retention": [{"num_heads": 8, "value_dim": 5, "chunk": 4}, {"num_heads": 8}],
    "parallel": [
        {
            "mixers": [
                {"type": "attention", "num_heads": 8, "head_dim": 3},
                {"type": "convolution"},
            ],
            "scales": [0.5, 2.0],
        }
    ],
}
"""Every mixer of the table, by type; none is kept whole on purpose."""
FFN_CASES: dict[str, list[dict[str, Any]]] = {
    "gelu": [{"hidden": 40}, {"hidden": 24, "approximate": "tanh", "bias": False}],
    "relu": [{"hidden": 56}],
    "silu": [{"hidden": 40}],
    "relu2": [{"hidden": 40}],
    "swiglu": [{"hidden": 40}, {"hidden": 24, "bias": True}],
    "geglu": [{"hidden": 40}],
    "moe": [
        {"experts": 8, "top_k": 3, "hidden": 5},
        {"experts": 16, "top_k": 2, "hidden": 7, "shared": 1, "shared_hidden": 8, "bias": True},
        {"experts": 8, "hidden": 8, "shared": 2, "shared_gate": True, "router": "sigmoid"},
        {"experts": 8, "hidden": 6, "groups": 4, "top_groups": 2, "balance": "bias", "clamp": {}},
    ],
}


def test_every_part_of_the_tables_has_a_plan() -> None:
    assert MIXER_CASES.keys() == set(MIXERS)
    assert FFN_CASES.keys() == set(FFNS)


def drawn(part: nn.Module) -> nn.Module:
    """The part with all weights drawn: none that is 0 or 1 hides a fault."""
    with torch.no_grad():
        for weight in part.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return part.double()


def mixer(kind: str, values: dict[str, Any], dim: int = DIM) -> nn.Module:
    torch.manual_seed(7)
    options = MIXERS[kind].model_validate({"type": kind, **values})
    return drawn(options.build(LayerContext(dim, 4 * LENGTH, 1, 3)))


def ffn(kind: str, values: dict[str, Any]) -> nn.Module:
    torch.manual_seed(7)
    options = FFNS[kind].model_validate({"type": kind, **values})
    return drawn(options.build(LayerContext(DIM, LENGTH)))


def passed(
    part: nn.Module, inputs: list[Tensor], call: Callable[..., Tensor], weight: Tensor
) -> list[Tensor]:
    """The output and the gradients of the inputs, after a backward pass from these gradients."""
    own = [x.detach().clone().requires_grad_() for x in inputs]
    y = call(part, *own)
    auxiliary = [m.auxiliary for m in part.modules() if getattr(m, "auxiliary", None) is not None]
    (torch.stack([(y * weight).sum(), *auxiliary]).sum()).backward()
    return [y.detach(), *(x.grad for x in own if x.grad is not None)]


def gathered(division: Division, part: nn.Module) -> dict[str, Tensor]:
    """The gradients of all weights, whole, as each process has them."""
    named = part.named_parameters()
    return {n: one_of(division.whole(n, p.grad)) for n, p in named if p.grad is not None}


def equals_the_whole(
    part: nn.Module, size: int, inputs: list[Tensor], call: Callable[..., Tensor]
) -> None:
    """Output, gradients of inputs and of weights, and the norm of these; processes have the same
    to the bit.
    """
    whole = copy.deepcopy(part)
    drawn = torch.randn(inputs[0].shape, dtype=torch.float64)  # of the output, which is as large
    want = passed(whole, inputs, call, drawn)
    gradients = {n: p.grad for n, p in whole.named_parameters() if p.grad is not None}
    squares = sum(float(g.square().sum()) for g in gradients.values())

    with divided(part, size) as (own, division):
        assert sum(p.numel() for p in own.parameters()) < sum(p.numel() for p in part.parameters())
        found = passed(own, [alike(x, size) for x in inputs], call, drawn)
        division.settle()
        named = [(n, p.grad) for n, p in own.named_parameters() if p.grad is not None]
        norm = float(one_of(division.squares(named)))
        learned = gathered(division, own)
    for a, b in zip(found, want, strict=True):
        assert largest(one_of(a), b) <= CLOSE
    assert learned.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert largest(learned[name], gradient) <= CLOSE, name
    assert norm == pytest.approx(squares, rel=1e-9)


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference, in parts of the largest number of b."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def sequences() -> list[SequenceInfo]:
    """One document per row, and rows of several with padding."""
    ids = torch.tensor([[0] * 11, [0] * 4 + [1] * 7, [0] * 3 + [1] * 5 + [-1] * 3])
    return [SequenceInfo(), SequenceInfo(0, ids, real=ids >= 0)]


def of_each(kinds: dict[str, list[dict[str, Any]]]) -> list[tuple[str, int, int]]:
    """(kind, number of the case, processes): the first case of a kind among 2, 4 and 8, others
    among 8 and one of these.
    """
    cases = [(kind, n) for kind, every in kinds.items() for n in range(len(every))]
    return [
        (kind, n, size) for kind, n in cases for size in SIZES if n == 0 or size != 2 + n % 2 * 2
    ]


@pytest.mark.parametrize(("kind", "number", "size"), of_each(MIXER_CASES))
def test_mixers(kind: str, number: int, size: int) -> None:
    values = MIXER_CASES[kind][number]
    dim = 48 if kind == "retention" else DIM  # whose heads are turned in pairs
    part = mixer(kind, values, dim)
    x = torch.randn(BATCH, LENGTH, dim, dtype=torch.float64)
    sequence = sequences()[size != 4]
    equals_the_whole(part, size, [x], lambda m, x: m(x, sequence))


@pytest.mark.parametrize(("kind", "number", "size"), of_each(FFN_CASES))
def test_feed_forward_networks(kind: str, number: int, size: int) -> None:
    part = ffn(kind, FFN_CASES[kind][number])
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    sequence = sequences()[size != 4]
    equals_the_whole(part, size, [x], lambda m, x: m(x, sequence))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("values", [{}, {"kv_heads": 2, "gate": "full", "qk_norm": True}])
def test_cross_attention(values: dict[str, Any], size: int) -> None:
    torch.manual_seed(3)
    options = CrossAttentionOptions(num_heads=8, head_dim=5, **values)
    part = drawn(options.build(LayerContext(DIM, LENGTH)))
    x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    memory = torch.randn(BATCH, 7, DIM, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]

    def call(m: nn.Module, x: Tensor, memory: Tensor) -> Tensor:
        y: Tensor = m(x, SequenceInfo(memory=memory, memory_mask=mask))
        return y

    equals_the_whole(part, size, [x, memory], call)


@pytest.mark.parametrize(
    ("kind", "values", "size", "message"),
    [
        ("attention", {"num_heads": 3}, 2, "model: 3 heads cannot be shared evenly by 2"),
        ("attention", {"num_heads": 12, "kv_heads": 6}, 4, "6 key/value heads cannot"),
        ("mla", {"num_heads": 6, "kv_rank": 4}, 4, "6 heads cannot"),
        ("differential", {"num_heads": 6}, 4, "6 heads cannot"),
        ("mamba2", {"head_dim": 8}, 4, "6 heads cannot"),
        ("gated_deltanet", {"num_heads": 6}, 4, "6 heads cannot"),
        ("convolution", {}, 16, "24 channels cannot"),
        ("retention", {"num_heads": 6}, 4, "6 heads cannot"),
        ("attention", {"num_heads": 4, "dropout": 0.1}, 2, "model.dropout: of attention's weights"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    kind: str, values: dict[str, Any], size: int, message: str
) -> None:
    part = mixer(kind, values)
    before = {n: p.clone() for n, p in part.named_parameters()}
    for rank in range(size):
        with pytest.raises(SpecError, match=message):
            divide(part, Planned(rank, size))
    assert all(torch.equal(p, before[n]) for n, p in part.named_parameters())


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("moe", {"experts": 6, "hidden": 4}, "6 experts cannot be shared evenly by 4"),
        ("gelu", {"hidden": 30}, "30 hidden units cannot be shared evenly by 4"),
    ],
)
def test_experts_and_hidden_units_too(kind: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        divide(ffn(kind, values), Planned(3, 4))


def test_dropout_of_hidden_units_is_that_of_one_process() -> None:
    part = ffn("swiglu", {"hidden": 40, "dropout": 0.4}).float()
    x = torch.randn(BATCH, LENGTH, DIM)
    torch.manual_seed(11)
    want = part(x)
    torch.manual_seed(11)
    with divided(part, 2) as (own, _):
        found = own(alike(x, 2))
    assert torch.allclose(one_of(found), want, atol=1e-5)


def test_alone_nothing_is_divided() -> None:
    part = mixer("attention", {"num_heads": 3})
    assert not divide(part, ALONE).shares
