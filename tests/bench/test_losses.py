"""The least time of operations, the losses of a step, and what to change."""

from __future__ import annotations

import pytest
import torch

from bigmodel_cli.bench.losses import Machine, Operation, advice, roofline
from bigmodel_cli.bench.result import Block, Facts, Measured, Work
from bigmodel_cli.bench.shares import of_time
from bigmodel_cli.bench.watching import Call
from bigmodel_cli.bench.work import operations, read_by_decoding
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models import MODELS, build

FP32, BF16 = torch.float32, torch.bfloat16
RATES = {FP32: 100.0, BF16: 200.0}


def test_the_least_time_is_of_flops_or_bytes_and_at_most_the_calls_own() -> None:
    calls = [
        Call("linear", 400.0, 50.0, BF16, 5.0),  # 2 s of FLOPs, 1 s of bytes
        Call("linear", 400.0, 50.0, FP32, 5.0),  # 4 s in its own precision
        Call("linear", 100.0, 150.0, FP32, 7.0),  # 3 s of bytes
        Call("copies", 0.0, 200.0, FP32, 1.5),  # 4 s, from a cache
    ]
    linear, copies = operations(calls, RATES.__getitem__, 50.0, extra=0.5)
    assert linear == Operation("linear", 3, 900.0, 250.0, 2.0 + 4.0 + 3.0, 15.5)
    assert copies == Operation("copies", 1, 0.0, 200.0, 1.0, 1.0, held=1)
    compiled = operations(calls, RATES.__getitem__, 50.0, compiled=True)
    assert [o.least for o in compiled if o.name == "copies"] == [0.0]


def rows(*numbers: tuple[float, float]) -> list[Operation]:
    return [Operation(f"op {i}", 2, 1.0, 1.0, a, b) for i, (a, b) in enumerate(numbers)]


def test_least_times_and_losses_are_the_step() -> None:
    many = rows((1, 2), (2, 2), (0, 3), (1, 5), (1, 3), (1, 9), (3, 4))
    found = roofline(many, 40.0, 4.0, 1.0)
    assert found.least == 9
    assert [(loss.name, loss.seconds) for loss in found.losses] == [
        *(("op 5", 8), ("op 3", 4), ("op 2", 3), ("op 4", 2), ("op 0", 1)),
        *(("other operations", 1), ("host", 8), ("data wait", 4)),
    ]
    assert found.share + sum(loss.seconds for loss in found.losses) / 40 == pytest.approx(1)


@pytest.mark.parametrize(("step", "wait", "scale"), [(10, 0, 1), (3, 2.5, 1), (8, 8, 1), (9, 1, 7)])
def test_operations_that_do_not_fit_are_pressed_into_the_step(
    step: float, wait: float, scale: float
) -> None:
    found = roofline(rows((1, 2), (9, 10), (2, 2)), step, wait, scale)
    assert found.pressed < 1
    assert 0 <= found.share <= 1
    assert found.least + sum(loss.seconds for loss in found.losses) == pytest.approx(step)


NAMED = {
    "data wait": (10.0, 8.0, [("linear", 1.0, 2.0)], "data.workers"),
    "host": (10.0, 0.0, [("linear", 1.0, 2.0)], "in Python and PyTorch: let more samples"),
    "optimizer": (10.0, 0.0, [("optimizer", 0.0, 9.0)], "updating the weights"),
    "moving": (10.0, 0.0, [("copies", 0.0, 9.0)], "moving numbers (copies): compile the network"),
    "products": (
        10.0,
        0.0,
        [("linear 3 x 4", 7.0, 9.0)],
        "products (linear 3 x 4) that are slower",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_to_change(name: str) -> None:
    step, wait, own, says = NAMED[name]
    found = [Operation(n, 1, flops, 1.0, 0.0, took) for n, flops, took in own]
    text = advice(roofline(found, step, wait, 1.0), Machine("fp32", False, True))
    assert says in text
    assert text.startswith(("80 %", "90 %"))


def test_a_gpu_is_told_of_bf16() -> None:
    own = [Operation("linear 3 x 4", 1, 7.0, 1.0, 0.0, 9.0)]
    text = advice(roofline(own, 10.0, 0.0, 1.0), Machine("fp32", True, False))
    assert "train.precision=bf16" in text


def measured(work: Work, **parts: float) -> Measured:
    facts = Facts("a", "x", "tokens", 4, 4, "fp32", "contiguous", False, 7, "cpu", 2, "random")
    return Measured(facts, [Block((10.0,) * 5, {n: (s,) * 5 for n, s in parts.items()})], work)


def test_a_result_says_where_its_time_goes() -> None:
    held = [Operation("copies", 3, 0.0, 9.0, 1.0, 2.0, held=2), *rows((1, 2))]
    work = Work(5.0, 100.0, 50.0, operations=held, peaks="fp32 products", step=5.0, note="a note")
    found = measured(work, wait=1.0)
    text = of_time([found, measured(Work(5.0, 1.0, 1.0))])
    assert "where a step of a goes: 10.00 s, of which 2.00 s (20 %) at the machine's peaks" in text
    assert "2 of 5 calls were faster than the peaks" in text
    assert "the machine's peaks: fp32 products" in text
    assert "a note" in text
    values = found.summary()["roofline"]
    # operations took 4 s of steps of 5 s, so 8 s of these
    assert values["losses_s"] == {
        "copies": 3.0, "op 0": 3.0, "other operations": 0.0, "host": 1.0, "data wait": 1.0,
    }  # fmt: skip
    tight = Work(5.0, 100.0, 50.0, operations=rows((1, 8)), step=5.0)
    assert "operations took 60 % longer while they were watched" in of_time([measured(tight)])


def test_the_share_of_reading_is_of_decoding() -> None:
    work = Work(5.0, 100.0, 50.0, must_read=200.0)
    assert measured(work, decode=8.0).read_share == 0.5
    assert measured(Work(5.0, 100.0, 50.0)).read_share is None


def test_what_decoding_reads() -> None:
    """Of a table that is not the logits' a row for each token, of eight experts those chosen."""
    moe = {"type": "moe", "experts": 8, "top_k": 2, "hidden": 12, "balance": "none"}
    values = {
        "type": "decoder", "dim": 16, "norm": None, "tie_embeddings": False,
        "blocks": [{"ffn": moe, "norm": {"type": "rmsnorm"}}],
    }  # fmt: skip
    info = DatasetInfo(vocab_size=50, context=9)
    model = build(MODELS["decoder"].model_validate(values), info)
    dense = 16 * 50 + 16 * 8 + 16
    for batch, part in ((1, 2 / 8), (2, 1 - (6 / 8) ** 2)):
        read = dense + 16 * batch + 3 * 8 * 12 * 16 * part
        assert read_by_decoding(model, batch, 1000.0) == pytest.approx(1000 + 4 * read)
    tied = build(MODELS["decoder"].model_validate({**values, "tie_embeddings": True}), info)
    experts = 3 * 2 * 12 * 16
    assert read_by_decoding(tied, 1, 0.0) == pytest.approx(4 * (dense + experts))
