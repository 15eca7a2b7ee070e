"""BERT's relatives equal transformers', on tiny models with every weight drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published import drawn, off, read, saved, settings, tensors, written
from torch import Tensor

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.no_cover

POST = {
    "vocab_size": 37, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3,
    "intermediate_size": 50, "max_position_embeddings": 23, "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.15, "layer_norm_eps": 1e-6, "initializer_range": 0.03,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": {**POST, "type_vocab_size": 3},
    "Roberta": {**POST, "type_vocab_size": 1, "classifier_dropout": 0.25},
    "XLMRoberta": {**POST, "type_vocab_size": 1},
    "ModernBert": {
        "vocab_size": 37, "hidden_size": 36, "num_hidden_layers": 4, "num_attention_heads": 3,
        "intermediate_size": 50, "max_position_embeddings": 23, "local_attention": 6,
        "embedding_dropout": 0.1, "mlp_dropout": 0.2, "classifier_dropout": 0.3,
        "norm_eps": 1e-4, "classifier_pooling": "mean", "attention_bias": True,
        "classifier_bias": True, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "DistilBert": {
        "vocab_size": 37, "dim": 36, "n_layers": 3, "n_heads": 3, "hidden_dim": 50,
        "max_position_embeddings": 23, "dropout": 0.15, "attention_dropout": 0.2,
        "seq_classif_dropout": 0.3,
    },
}  # fmt: skip
LABELS = {"id2label": {0: "no", 1: "so so", 2: "yes"}, "label2id": {"no": 0, "so so": 1, "yes": 2}}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
EVERY = [(name, head) for name in CONFIGS for head in HEADS]
SHORTER = {"Roberta": 2, "XLMRoberta": 2}
"""Positions that the table has and no token."""
WRITTEN = {"XLMRoberta": "Roberta"}
"""The same network under a more general name."""
UNUSED: dict[str, dict[str, Any]] = {
    **{
        f"XLMRoberta{head}": {"architectures": [f"Roberta{head}"], "model_type": "roberta"}
        for head in HEADS
    },
    "DistilBertForTokenClassification": {"seq_classif_dropout": 0.15},  # of another head
    "ModernBert": {"pad_token_id": None},  # their default is no token of so few
}
"""What comes back otherwise."""


def theirs(name: str, head: str, **more: Any) -> Any:
    labels = LABELS if "Classification" in head else {}
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name], **labels, **more)
    config.pad_token_id = {"Bert": 0, "DistilBert": 0}.get(name, 1)
    return drawn(getattr(transformers, name + head)(config))


def batch(length: int) -> tuple[Tensor, Tensor]:
    """(3, T) tokens, none of which is the padding's, and which are real."""
    torch.manual_seed(3)
    real = torch.ones(3, length, dtype=torch.bool)
    real[0, 5:] = real[2, 1:] = False
    return torch.randint(2, 37, (3, length)), real


def outputs(model: Any, tokens: Tensor, real: Tensor, **more: Tensor) -> Tensor:
    """Theirs: logits, or the body's hidden states."""
    padding = model.config.pad_token_id
    padded = tokens.masked_fill(~real, 1 if padding is None else padding)
    with torch.no_grad():
        found = model(padded, attention_mask=real.long(), **more)
    y: Tensor = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return y


@pytest.mark.parametrize(("name", "head"), EVERY)
def test_equals_transformers_and_goes_back_to_the_bit(name: str, head: str, tmp_path: Path) -> None:
    model = theirs(name, head)
    folder = saved(model, tmp_path / "theirs")
    ours, _ = read(folder)
    out = written(folder, ours, tmp_path / "out")
    length = 23 - SHORTER.get(name, 0)
    assert ours.max_len == length
    tokens, real = batch(length)
    want = outputs(model, tokens, real)
    label = head == "ForSequenceClassification"

    def of_real(x: Tensor) -> Tensor:
        return x if label else x[real]

    run = ours if head != "Model" else ours.features
    with torch.no_grad():
        got = run(tokens.masked_fill(~real, -1))
        alone = run(tokens[:1, :5])
    assert off(of_real(got), of_real(want)) <= 1e-5
    assert off(got[:1] if label else got[:1, :5], alone) <= 1e-5

    before, after = tensors(folder), tensors(out)
    # a body's layer for labels is no part of what it gives
    assert {n for n in before if n not in after} == {n for n in before if in_vain(n, head)}
    assert all(torch.equal(after[n], before[n]) for n in after)
    again = getattr(transformers, WRITTEN.get(name, name) + head).from_pretrained(out).eval()
    settled = settings(type(model).from_pretrained(folder).config)
    changed = {k: v for k, v in settings(again.config).items() if settled.get(k) != v}
    assert changed == UNUSED.get(name + head, UNUSED.get(name, {}))
    assert torch.equal(outputs(again, tokens, real), want)

    with torch.no_grad():
        ours.to(torch.bfloat16)
        got = run(tokens.masked_fill(~real, -1))
    assert off(of_real(got), of_real(outputs(model.to(torch.bfloat16), tokens, real))) <= 1e-2


def in_vain(name: str, head: str) -> bool:
    return head == "Model" and name.startswith("pooler.")
