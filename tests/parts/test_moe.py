"""Experts: what counts for their balance, and what does not.

(That they compute the right thing: test_references.py.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import loss_of
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.generation.sampling import generate
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.models.encoder import Encoder, EncoderOptions, FrameEncoder
from bigmodel_cli.models.seq2seq import Seq2Seq, Seq2SeqOptions
from bigmodel_cli.parts.context import LayerContext, SequenceInfo
from bigmodel_cli.parts.moe import MoEOptions
from bigmodel_cli.tasks import CausalLMOptions

ATTENTION = {"type": "attention", "num_heads": 2}
EXPERTS = {"type": "moe", "experts": 5, "top_k": 2, "hidden": 12, "balance_weight": 0.3}


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_balance_loss_is_mixtrals_without_padding(top_k: int) -> None:
    torch.manual_seed(top_k)
    part = (
        MoEOptions(experts=6, top_k=top_k, hidden=8, balance_weight=0.25)
        .build(LayerContext(12, 64))
        .train()
    )
    x = torch.randn(4, 9, 12)
    real = torch.arange(9) < torch.tensor([9, 2, 5, 1])[:, None]
    for mask in (None, real):
        part(x, SequenceInfo(real=mask))
        theirs = load_balancing_loss_func((part.router(x.flatten(0, 1)),), 6, top_k, mask)
        assert part.auxiliary is not None
        # theirs counts each of the k choices as a whole token
        torch.testing.assert_close(part.auxiliary, 0.25 * theirs / top_k)
        part.after_step()


def test_even_load_costs_the_weight_itself() -> None:
    part = (
        MoEOptions(experts=4, top_k=1, hidden=8, balance_weight=0.7)
        .build(LayerContext(4, 64))
        .train()
    )
    with torch.no_grad():
        part.router.weight.copy_(torch.eye(4) * 1e-4)
    part(torch.eye(4)[None])
    assert float(part.auxiliary.detach()) == pytest.approx(0.7, rel=1e-4)  # type: ignore[union-attr]


def test_the_bias_moves_by_the_real_tokens_of_the_whole_step() -> None:
    torch.manual_seed(3)
    part = MoEOptions(
        experts=7, top_k=3, hidden=8, router="sigmoid", balance="bias", balance_weight=0.02
    ).build(LayerContext(10, 64))
    part.train()
    expected = torch.zeros(7)
    for _ in range(4):
        counts = [0] * 7
        for _ in range(3):  # micro-batches of a step
            x, real = torch.randn(2, 6, 10), torch.rand(2, 6) < 0.6
            part(x, SequenceInfo(real=real))
            for row, kept in zip(x.flatten(0, 1), real.flatten().tolist(), strict=True):
                scores = (torch.sigmoid(part.router.weight @ row) + expected).tolist()
                best = sorted(range(7), key=lambda e: -scores[e])[:3]
                for e in best if kept else []:
                    counts[e] += 1
        assert part.load.tolist() == counts
        mean = sum(counts) / 7
        assert part.statistics() == {
            "experts.load_max": pytest.approx(max(counts) / mean),
            "experts.idle": pytest.approx(sum(c == 0 for c in counts) / 7),
        }
        part.after_step()
        expected += torch.tensor([0.02 * ((mean > c) - (mean < c)) for c in counts])
        torch.testing.assert_close(part.bias, expected)
        assert part.load.tolist() == [0] * 7


def models() -> dict[str, tuple[Any, Any]]:
    """For each skeleton a model with experts and a call that gives it (B, T) rows of tokens, -1
    where they are over.
    """
    blocks = [{"mixer": ATTENTION, "ffn": EXPERTS}]
    info = DatasetInfo(vocab_size=30, context=12)
    labels = DatasetInfo(vocab_size=30, context=12, classes=("a", "b"))
    sound = DatasetInfo(frame_width=3, context=40, classes=("a", "b"))
    decoder = Decoder(DecoderOptions.model_validate({"dim": 16, "blocks": blocks}), info)
    frontend = {"dim": 16, "blocks": blocks, "frontend": {"stride": 4}, "pool": "mean"}
    two = {
        "dim": 16,
        "encoder": blocks,
        "decoder": [{"mixer": ATTENTION, "cross": {"num_heads": 2}, "ffn": EXPERTS}],
    }
    task = CausalLMOptions().build()

    def heard(model: Any, rows: torch.Tensor) -> None:
        count = (rows >= 0).sum(1) * 4  # as many vectors as the rows have tokens
        frames = torch.randn(len(rows), 48, 3, generator=torch.Generator().manual_seed(0))[
            :, : 4 * rows.shape[1]
        ]
        model(frames * (torch.arange(frames.shape[1]) < count[:, None])[..., None], count)

    end = torch.full((1,), -1)
    return {
        "decoder": (decoder, lambda m,
         rows: loss_of(task, m, {"tokens": torch.cat((rows, end.expand(len(rows), 1)), 1)})),
        "encoder": (Encoder(EncoderOptions.model_validate({"dim": 16, "blocks": blocks}), labels),
         lambda m, rows: m(rows)),
        "frames": (FrameEncoder(EncoderOptions.model_validate(frontend), sound), heard),
        "seq2seq": (Seq2Seq(Seq2SeqOptions.model_validate(two), info), lambda m,
         rows: m(rows, rows)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["decoder", "encoder", "frames", "seq2seq"])
def test_padding_counts_in_no_skeleton(name: str) -> None:
    torch.manual_seed(0)
    model, call = models()[name]
    parts = [m for m in model.modules() if hasattr(m, "after_step")]
    rows = torch.randint(30, (6, 9))
    rows[0, 5:] = rows[2, 1:] = rows[5, 7:] = -1
    model.train()
    count = int((rows >= 0).sum()) - (len(rows) if name == "decoder" else 0)  # the last: no input
    found = []
    for width in (0, 3):
        call(model, torch.cat((rows, torch.full((6, width), -1)), 1))
        assert [int(p.load.sum()) for p in parts] == [2 * count] * len(parts)
        found.append([torch.cat((p.load, p.auxiliary[None].detach())).float() for p in parts])
        for part in parts:
            part.after_step()
    for narrow, wide in zip(*found, strict=True):
        torch.testing.assert_close(narrow, wide, atol=1e-6, rtol=1e-5)


def test_only_training_counts() -> None:
    model, call = models()["decoder"]
    part = model.blocks[0].ffn
    model.eval()
    call(model, torch.randint(30, (2, 9)))
    list(generate(model, torch.randint(30, (2, 4)), max_new_tokens=5))
    assert part.load.tolist() == [0] * 5
    assert part.auxiliary is None


def test_a_batch_of_nothing_but_padding_is_balanced() -> None:
    part = MoEOptions(experts=3, top_k=2, hidden=8).build(LayerContext(6, 8)).train()
    y = part(torch.randn(2, 3, 6), SequenceInfo(real=torch.zeros(2, 3, dtype=torch.bool)))
    assert bool(y.isfinite().all())
    assert float(part.auxiliary.detach()) == 0  # type: ignore[union-attr]
    assert part.load.tolist() == [0] * 3


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_network_in_bf16_chooses_experts_by_exact_scores(router: str, bias: bool) -> None:
    """Scores that are nearer to each other than bf16 tells apart."""
    torch.manual_seed(11)
    options = MoEOptions.model_validate(
        {"experts": 9, "top_k": 4, "hidden": 6, "router": router, "bias": bias}
    )
    part = options.build(LayerContext(20, 64)).eval()
    with torch.no_grad():
        shared = 0.3 * torch.randn(20)  # of all experts, so that what differs is little
        part.router.weight.normal_(0.0, 0.01).add_(shared)
        if bias:
            part.router.bias.normal_(2.0, 0.01)
    part.bfloat16()
    x = torch.randn(3, 41, 20).bfloat16()
    logits = x.double().flatten(0, 1) @ part.router.weight.double().T
    if bias:
        logits = logits + part.router.bias.double()
    scores = logits.exp() if router == "softmax" else 1 / (1 + (-logits).exp())
    found, chosen = part.route(x.flatten(0, 1))
    best = scores.argsort(-1, descending=True)[:, :4]
    torch.testing.assert_close(chosen.sort(-1).values, best.sort(-1).values)
    picked = scores.gather(1, chosen)
    torch.testing.assert_close(
        found.double(), picked / picked.sum(-1, keepdim=True), rtol=1e-5, atol=0
    )
    rounded = logits.bfloat16().topk(4, -1).indices  # which would choose others
    assert (rounded.sort(-1).values != best.sort(-1).values).any()
