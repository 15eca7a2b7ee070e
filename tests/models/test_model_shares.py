"""Whole models of many kinds of parts, divided: loss and gradients are those of one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from local_teams import Local, alike, divided, one_of
from torch import Tensor, nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.logits import cross_entropy, is_late, late, whole
from bigmodel_cli.models import MODELS

VOCAB, LENGTH, DIM = 37, 10, 16
HEADS = {"num_heads": 8, "head_dim": 4}
NORM = {"type": "rmsnorm"}
MIXERS: list[dict[str, Any]] = [
    {"type": "attention", **HEADS, "kv_heads": 2, "position": {"type": "rotary"}, "qk_norm": True},
    {"type": "attention", **HEADS, "position": {"type": "t5", "shared": True}, "window": 4},
    {"type": "mla", "num_heads": 8, "kv_rank": 5, "head_dim": 3, "rotary_dim": 4},
    {"type": "differential", "num_heads": 8, "head_dim": 3},
    {"type": "mamba2", "state": 3, "head_dim": 4, "chunk": 4},
    {"type": "gated_deltanet", "num_heads": 8, "key_dim": 3, "chunk": 4},
    {"type": "convolution"},
    {"type": "retention", "num_heads": 8, "value_dim": 3},
    {"type": "attention", **HEADS, "position": {"type": "t5", "shared": True}, "window": 4},
    {"type": "parallel", "mixers": [{"type": "attention", **HEADS}, {"type": "convolution"}]},
]
FFNS: list[dict[str, Any]] = [
    {"type": "swiglu", "hidden": 24},
    {"type": "moe", "experts": 8, "top_k": 2, "hidden": 5, "shared": 1, "shared_hidden": 8},
    {"type": "gelu", "hidden": 40},
]
BLOCKS = [
    {"mixer": mixer, "ffn": FFNS[number % 3], "norm": NORM} for number, mixer in enumerate(MIXERS)
]


def largest(a: Tensor, b: Tensor) -> float:
    """The largest difference, in parts of the largest number of b."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def decoder(**options: Any) -> nn.Module:
    """Of all mixers and several feed-forward networks, in fp64."""
    torch.manual_seed(1)
    values = {"type": "decoder", "dim": DIM, "max_len": LENGTH, "blocks": BLOCKS, **options}
    built = MODELS["decoder"].model_validate(values).build(DatasetInfo(vocab_size=VOCAB))
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return built.double()


def rows(seed: int = 2, padded: int = 3) -> tuple[Tensor, Tensor]:
    """(B, T) tokens and what follows them, the last row padded."""
    torch.manual_seed(seed)
    tokens = torch.randint(VOCAB, (3, LENGTH + 1))
    tokens[2, LENGTH + 1 - padded :] = -1
    return tokens[:, :-1], tokens[:, 1:]


def learnt(model: nn.Module, inputs: list[Tensor], loss: Callable[..., Tensor]) -> Tensor:
    """The loss, with the auxiliary ones of experts, after a backward pass."""
    total = loss(model, *inputs)
    for module in model.modules():
        if getattr(module, "auxiliary", None) is not None:
            total = total + module.auxiliary
    total.backward()
    return total.detach()


def equals_the_whole(
    model: nn.Module, size: int, inputs: list[Tensor], loss: Callable[..., Tensor]
) -> None:
    """Loss, gradients and their norm, the same to the bit in each process, and the weights put
    together again.
    """
    one = copy.deepcopy(model)
    want = learnt(one, inputs, loss)
    gradients = {n: p.grad for n, p in one.named_parameters() if p.grad is not None}
    squares = sum(float(g.square().sum()) for g in gradients.values())
    with divided(model, size) as (own, division):
        found = learnt(own, [alike(x, size) for x in inputs], loss)
        division.settle()
        named = [(n, p.grad) for n, p in own.named_parameters() if p.grad is not None]
        norm = float(one_of(division.squares(named)))
        learned = {n: one_of(division.whole(n, g)) for n, g in named}
        weights = {n: one_of(division.whole(n, p.detach())) for n, p in own.named_parameters()}
    assert largest(one_of(found), want) <= 1e-6
    assert learned.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert largest(learned[name], gradient) <= 1e-6, name
    for name, weight in model.named_parameters():
        assert torch.equal(weights[name], weight), name
    assert norm == pytest.approx(squares, rel=1e-9)
    kept = (sum(p.numel() for p in part.parameters()) for part in (own, model))
    assert next(kept) < next(kept)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("size", "tied"),
    [pytest.param(2, True, marks=SLOW), (4, False), pytest.param(8, True, marks=SLOW)],
)
def test_a_decoder_of_all_mixers(size: int, tied: bool) -> None:
    equals_the_whole(
        decoder(tie_embeddings=tied), size, [*rows()], lambda m, x, y: cross_entropy(m(x), y)
    )


@pytest.mark.parametrize(
    ("chunk", "options", "smoothing", "size"),
    [
        ("auto", {}, 0.1, 8),
        (4, {}, 0.0, 2),
        ("auto", {"logit_softcap": 2.0, "logit_scale": 1.5}, 0.0, 2),
        (4, {"logit_softcap": 2.0, "logit_scale": 1.5}, 0.1, 4),
    ],
)
def test_a_loss_reads_its_own_logits_alone(
    chunk: Any, options: dict[str, Any], smoothing: float, size: int
) -> None:
    """Of a vocabulary of 37, in pieces; nothing of the size of the logits is exchanged."""
    tokens, targets = rows()
    small = [{"mixer": MIXERS[0], "ffn": FFNS[0]}]
    model = decoder(blocks=small, **options)

    def loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
        with late(chunk):
            return cross_entropy(model(tokens), targets, smoothing)

    equals_the_whole(model, size, [tokens, targets], loss)
    with divided(model, size) as (own, division):
        team = division.team
        assert isinstance(team, Local)
        with late(chunk):
            logits = own(alike(tokens, size))
        team.calls.clear()
        cross_entropy(logits, alike(targets, size), smoothing)
    count = int((targets >= 0).sum())
    assert is_late(logits)
    assert 0 < sum(team.calls) <= 4 * count < count * VOCAB


def test_logits_that_are_read_whole_are_those_of_one_process() -> None:
    tokens, _ = rows()
    model = decoder(blocks=[{"mixer": MIXERS[0], "ffn": FFNS[1]}]).eval()
    want = model(tokens).detach()
    with divided(model, 4) as (own, _):
        found = whole(own(alike(tokens, 4)))
    assert largest(one_of(found), want) <= 1e-6


@pytest.mark.parametrize("size", [2, 4])
def test_an_encoder_of_tokens(size: int) -> None:
    torch.manual_seed(4)
    values = {
        "type": "encoder", "dim": DIM, "max_len": LENGTH, "position": "learned",
        "blocks": [{"mixer": MIXERS[1], "ffn": {"type": "gelu", "hidden": 24}}],
    }  # fmt: skip
    model = MODELS["encoder"].model_validate(values).build(DatasetInfo(vocab_size=VOCAB)).double()
    equals_the_whole(model, size, [*rows()], lambda m, x, y: cross_entropy(m(x), y))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("share", [True, False, "inputs"])
def test_an_encoder_decoder(size: int, share: Any) -> None:
    torch.manual_seed(4)
    block = {"mixer": {"type": "attention", **HEADS}, "ffn": {"type": "relu", "hidden": 24}}
    values = {
        "type": "seq2seq", "dim": DIM, "max_len": LENGTH, "encoder": [block],
        "decoder": [{**block, "cross": HEADS}], "share_embeddings": share, "logit_bias": True,
    }  # fmt: skip
    model = MODELS["seq2seq"].model_validate(values).build(DatasetInfo(vocab_size=VOCAB)).double()
    tokens, targets = rows()
    source, _ = rows(5, 5)
    inputs = [source, tokens, targets]
    equals_the_whole(model, size, inputs, lambda m, s, x, y: cross_entropy(m(s, x), y))


@pytest.mark.parametrize("size", [2, 4])
def test_a_vision_transformer(size: int) -> None:
    torch.manual_seed(4)
    values = {
        "type": "vit", "dim": DIM, "patch": 4,
        "blocks": [
            {
                "mixer": {"type": "attention", **HEADS, "position": {"type": "axial"}},
                "ffn": {"type": "gelu", "hidden": 24},
                "layer_scale": 0.5,
            }
        ],
    }  # fmt: skip
    info = DatasetInfo(image_shape=(3, 8, 12), classes=("a", "b", "c"))
    model = MODELS["vit"].model_validate(values).build(info).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    images, labels = torch.randn(3, 3, 8, 12, dtype=torch.float64), torch.tensor([0, 2, 1])
    equals_the_whole(model, size, [images, labels], lambda m, x, y: cross_entropy(m(x), y))
