"""Each part whose rows are divided among 2 and 4 computes what it computes of whole rows."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from teams import copied, together
from torch import Tensor, nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.context_parallel import row_faults
from bigmodel_cli.draw import again, drawing, kept_by_row, placed
from bigmodel_cli.models.decoder import DecoderOptions
from bigmodel_cli.models.skeleton import through
from bigmodel_cli.parts import FFNS, MIXERS, NORMS, POSITIONS
from bigmodel_cli.parts.attention import Attention, AttentionOptions
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.row_share import RowShare, runs_of
from bigmodel_cli.shares import ALONE, Team

DIM, BATCH, CLOSE = 12, 3, 1e-10
LENGTHS = [13, 3]  # the last is less than four processes
ROTARY = {"type": "rotary"}
MIXER_CASES: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {"num_heads": 3},
        {"num_heads": 6, "kv_heads": 2, "head_dim": 4, "position": ROTARY, "gate": "full"},
        {"num_heads": 4, "kv_heads": 1, "position": {**ROTARY, "fraction": 0.7}, "window": 3,
         "head_dim": 6},
        {"num_heads": 3, "window": 6, "sinks": True, "gate": "head", "bias": ["q", "o"]},
        {"num_heads": 3, "sinks": True, "scale": 0.4},
        {"num_heads": 2, "softcap": 1.5, "qk_norm": True, "window": 5},
        {"num_heads": 4, "qk_norm": {"over": "full"}, "position": {"type": "alibi"}},
        {"num_heads": 3, "position": {"type": "alibi"}, "window": 4, "softcap": 2.0},
        {"num_heads": 2, "position": {"type": "t5", "buckets": 5, "max_distance": 7}},
        {"num_heads": 2, "position": {**ROTARY, "scaling": {"type": "linear", "factor": 3}}},
        {"num_heads": 3, "causal": False, "kv_heads": 1, "position": ROTARY},
        {"num_heads": 2, "causal": False, "window": 4, "sinks": True},
        {"num_heads": 3, "causal": False, "window": 3, "position": {"type": "alibi"}},
        {
            "num_heads": 2,
            "causal": False,
            "softcap": 1.2,
            "position": {"type": "t5", "buckets": 6, "max_distance": 5},
        },
    ],
    "mla": [
        {"num_heads": 3, "kv_rank": 5, "rotary_dim": 4, "head_dim": 3, "value_dim": 5},
        {"num_heads": 2, "kv_rank": 4, "q_rank": 7, "rotary_dim": 2, "head_dim": 6},
    ],
    "differential": [
        {"num_heads": 3},
        {"num_heads": 2, "head_dim": 4, "position": ROTARY},
        {"num_heads": 1, "causal": False},
    ],
    "parallel": [
        {
            "mixers": [
                {"type": "attention", "num_heads": 2, "window": 2},
                {"type": "differential", "num_heads": 1, "position": ROTARY},
            ],
            "scales": [0.5, 1.5],
        }
    ],
}  # fmt: skip
UNDIVIDED: dict[str, dict[str, Any]] = {
    "mamba2": {"head_dim": 4, "state": 3},
    "gated_deltanet": {"num_heads": 2},
    "convolution": {},
    "retention": {"num_heads": 2},
}
FFN_CASES: dict[str, dict[str, Any]] = {
    **{kind: {"hidden": 10} for kind in ("gelu", "relu", "silu", "relu2", "swiglu", "geglu")},
    "moe": {"experts": 4, "top_k": 2, "hidden": 6, "shared": 1, "balance": "bias"},
}


def mixer(kind: str, values: dict[str, Any]) -> nn.Module:
    """With all weights drawn: none that is 0 or 1 hides a fault."""
    torch.manual_seed(3)
    options = MIXERS[kind].model_validate({"type": kind, **values})
    return drawn(options.build(LayerContext(DIM, 32, 1, 3)))


def drawn(part: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in part.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return part.double()


def documents(length: int) -> list[Tensor | None]:
    """One document a row, and rows of several with padding of both sides."""
    ids = torch.tensor([[0] * 13, [0] * 5 + [1] * 8, [-1] * 2 + [3] * 6 + [4] * 3 + [-1] * 2])
    return [None, ids[:, :length]]


def gradients(part: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in part.named_parameters() if p.grad is not None}


def equals_the_whole(part: nn.Module, size: int, length: int, ids: Tensor | None) -> None:
    """Output, and gradients of the input and of all weights."""
    torch.manual_seed(length)
    x, towards = torch.randn(2, BATCH, length, DIM, dtype=torch.float64)
    real = torch.ones(BATCH, length, dtype=torch.bool) if ids is None else ids >= 0
    whole, own = copied(part), x.clone().requires_grad_()
    want = whole(own, SequenceInfo(0, ids, real=real))
    (want * towards).sum().backward()

    def run(team: Team) -> tuple[RowShare, Tensor, Tensor, dict[str, Tensor]]:
        share, part_of_it = RowShare(team, length), copied(part)
        own = share.own(x).requires_grad_()
        sequence = SequenceInfo(0, ids, real=share.own(real), share=share)
        y = part_of_it(own, sequence)
        weight = share.own(towards) * (0.0 if share.spare else 1.0)
        (y * weight).sum().backward()
        assert own.grad is not None
        return share, y.detach(), own.grad, gradients(part_of_it)

    found = together(size, run)
    y, of_x = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    for share, y_own, x_own, _ in found:
        places = share.places(x.device)[: share.count]
        y[:, places], of_x[:, places] = y_own[:, : share.count], x_own[:, : share.count]
        assert share.count or not x_own.any()
    assert own.grad is not None
    assert largest(y, want.detach()) <= CLOSE
    assert largest(of_x, own.grad) <= CLOSE
    for name, gradient in gradients(whole).items():
        assert largest(sum(one[3][name] for one in found), gradient) <= CLOSE, name


def largest(a: Any, b: Tensor) -> float:
    """The largest difference, in parts of the largest number of b."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


NUMBERED = [(kind, n) for kind, cases in MIXER_CASES.items() for n in range(len(cases))]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("kind", "number"), NUMBERED)
def test_mixers(kind: str, number: int, size: int) -> None:
    part = mixer(kind, MIXER_CASES[kind][number])
    assert not row_faults(part)
    for length in LENGTHS:
        for ids in documents(length):
            equals_the_whole(part, size, length, ids)


@pytest.mark.parametrize("kind", FFNS)
def test_what_mixes_no_positions(kind: str) -> None:
    torch.manual_seed(4)
    options = FFNS[kind].model_validate({"type": kind, **FFN_CASES[kind]})
    part = drawn(options.build(LayerContext(DIM, 32)))
    assert not row_faults(part)
    equals_the_whole(part, 4, 13, documents(13)[1])


@pytest.mark.parametrize("kind", sorted(set(POSITIONS) - {"none"}))
def test_positions(kind: str) -> None:
    torch.manual_seed(4)
    part = drawn(POSITIONS[kind].model_validate({"type": kind}).build(DIM, 13))
    assert not row_faults(part)
    for ids in documents(13):
        equals_the_whole(part, 4, 13, ids)


def test_every_part_says_whether_rows_divide() -> None:
    assert MIXER_CASES.keys() | UNDIVIDED.keys() == set(MIXERS)
    assert FFN_CASES.keys() == set(FFNS)
    for kind, values in UNDIVIDED.items():
        (fault,) = row_faults(mixer(kind, values))
        assert "mixes positions, or does not say" in fault
    for kind in NORMS:
        assert not row_faults(NORMS[kind].model_validate({"type": kind}).build(DIM))


def test_a_subclass_is_asked_again() -> None:
    """A plugin's part may inherit one that divides, and mix positions."""

    class Rolled(Attention):
        def forward(self, x: Tensor, *more: Any) -> Tensor:
            return super().forward(x.roll(1, 1), *more)

    class Inside(nn.Module):
        context_fault = ""

        def __init__(self, mixer: nn.Module) -> None:
            super().__init__()
            self.first, self.second = mixer, nn.Conv1d(2, 2, 1)

    (fault,) = row_faults(Rolled(AttentionOptions(num_heads=2), LayerContext(DIM, 32)))
    assert fault.startswith("model: Rolled mixes positions")
    faults = row_faults(Inside(mixer("attention", {"num_heads": 2})))
    assert [fault[:30] for fault in faults] == ["model.second: Conv1d mixes pos"]


@pytest.mark.parametrize(
    ("kind", "values", "fault"),
    [
        (
            "attention",
            {"num_heads": 2, "dropout": 0.1, "window": 4},
            "model.dropout: of attention's weights, in a window",
        ),
    ],
)
def test_options_that_do_not_allow_it(kind: str, values: dict[str, Any], fault: str) -> None:
    assert row_faults(mixer(kind, values)) == [fault]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_all_have_as_many_positions_and_see_as_many_keys(size: int) -> None:
    for length in range(50):
        every = runs_of(length, size)
        places = sorted(p for runs in every for run in runs for p in run)
        assert places == list(range(length))
        counts = [sum(map(len, runs)) for runs in every]
        assert max(counts) - min(counts) <= 1
        assert max(counts) <= -(-length // size)
    seen = [sum(p + 1 for run in runs for p in run) for runs in runs_of(64 * size, size)]
    assert max(seen) == min(seen)


def kept(*shape: int) -> Tensor:
    """What dropout of rows that are told keeps."""
    found = kept_by_row(shape, 20000, torch.device("cpu"))
    assert found is not None
    return found


def test_a_draw_is_that_of_the_positions() -> None:
    keys = torch.tensor([5, -7, 11])
    with drawing(keys):
        whole = [kept(*shape) for shape in ((3, 13, 6), (3, 2, 13, 13), (3,))]
    for runs in runs_of(13, 3):
        places = [p for run in runs for p in run]
        with drawing(keys), placed(runs):
            stream = kept(3, len(places), 6)
            repeated = again()
            found = []
            for number, run in enumerate(runs):
                last = number == len(runs) - 1
                with contextlib.nullcontext() if last else repeated(), placed((run,)):
                    found.append(kept(3, 2, len(run), run.stop))
            rows = kept(3)
            with pytest.raises(ValueError, match="of each row there are"):
                kept(3, len(places) + 1, 6)
        assert torch.equal(stream, whole[0][:, places])
        for run, own in zip(runs, found, strict=True):
            assert torch.equal(own, whole[1][:, :, run.start : run.stop, : run.stop])
        assert torch.equal(rows, whole[2])


def test_activations_are_divided() -> None:
    """Bytes that are kept for the backward pass of a decoder's blocks."""
    torch.manual_seed(2)
    block = {
        "mixer": {"type": "attention", "num_heads": 4, "kv_heads": 1, "position": ROTARY},
        "ffn": {"type": "swiglu", "hidden": 96},
    }
    options = DecoderOptions.model_validate({"type": "decoder", "dim": 32, "blocks": [block] * 2})
    blocks = options.build(DatasetInfo(vocab_size=9, context=256)).blocks
    x = torch.randn(1, 256, 32)

    def bytes_kept(team: Team) -> int:
        share = RowShare(team, 256) if team.size > 1 else None
        own, found = x if share is None else share.own(x), dict[int, int]()
        weights = {p.untyped_storage().data_ptr() for p in blocks.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = through(blocks, None, own, SequenceInfo(share=share))
        assert y.requires_grad
        return sum(found.values())

    whole = bytes_kept(ALONE)
    assert all(one < 0.58 * whole for one in together(2, bytes_kept))
    assert all(one < 0.36 * whole for one in together(4, bytes_kept))
