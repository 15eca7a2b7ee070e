"""BERT's relatives equal transformers', on tiny models with every weight drawn anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published import drawn, off, read, saved, settings, tensors, with_tokenizer, written
from safetensors.torch import save_file
from torch import Tensor

from bigmodel_cli.convert import opening
from bigmodel_cli.convert.exporting import express
from bigmodel_cli.data import input_of
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.loaded import load_checkpoint

transformers = pytest.importorskip("transformers")

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


def test_types_of_tokens_and_the_mask_are_berts(tmp_path: Path) -> None:
    model = theirs("Bert", "ForMaskedLM")
    folder = with_tokenizer(saved(model, tmp_path), "[MASK]")
    ours, _ = read(folder)
    tokens, real = batch(11)
    types, masked = torch.randint(3, (3, 11)), torch.rand(3, 11) < 0.4
    want = outputs(model, tokens.masked_fill(masked, 7), real, token_type_ids=types)
    with torch.no_grad():
        got = ours(tokens.masked_fill(~real, -1), types, masked=masked & real)
    assert off(got[real], want[real]) <= 1e-5


@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
@pytest.mark.parametrize("name", ["Bert", "ModernBert"])
def test_a_text_stands_between_special_tokens_without_labels_too(
    name: str, head: str, tmp_path: Path
) -> None:
    folder = with_tokenizer(saved(theirs(name, head), tmp_path), "[MASK]")
    loaded = load_checkpoint(folder, "cpu", body=True)
    reader = input_of(loaded.info).reader(loaded.spec.data, loaded.assets)
    rows = [reader.read(text, "")[0] for text in ("w20 w21", "w22")]
    library = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert reader.batch(rows)["tokens"][0].tolist() == library("w20 w21")["input_ids"]
    assert reader.batch(rows)["tokens"][1].tolist()[:3] == library("w22")["input_ids"]


def test_tokens_are_not_hidden_where_no_token_stands_for_them(tmp_path: Path) -> None:
    folder = with_tokenizer(saved(theirs("Bert", "ForMaskedLM"), tmp_path), None)
    ours, _ = read(folder)
    tokens, real = batch(5)
    with pytest.raises(SpecError, match="no token that stands for a hidden one"):
        ours(tokens, masked=real)


def test_names_of_the_hubs_older_files_are_read(tmp_path: Path) -> None:
    """Without a prefix or with one, gamma and beta, and what pretraining had beside."""
    model = theirs("Bert", "ForPreTraining")
    want, _ = read(saved(model, tmp_path / "theirs"))
    state = want.state_dict()
    for prefix in ("", "bert."):
        names = {}
        for name, tensor in tensors(tmp_path / "theirs").items():
            name = prefix + name.removeprefix("bert.") if name.startswith("bert.") else name
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            names[name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
        names |= {f"{prefix}embeddings.position_ids": torch.arange(23)[None]}
        table = next(t for name, t in names.items() if name.endswith("word_embeddings.weight"))
        names |= {"cls.predictions.decoder.weight": table.clone()}
        save_file(names, tmp_path / "theirs" / "model.safetensors")
        ours, _ = read(tmp_path / "theirs")
        assert all(torch.equal(t, state[n]) for n, t in ours.state_dict().items())


@pytest.mark.parametrize("head", ["Model", "ForPreTraining", "ForSequenceClassification"])
def test_a_new_head_keeps_the_pooler(
    head: str, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = theirs("Bert", head)
    folder = with_tokenizer(saved(model, tmp_path / "theirs"), "[MASK]")
    (tmp_path / "rows.tsv").write_text("w20 w21\tgood\nw22\tbad\n" * 4)
    spec = {
        "data": {
            "type": "table", "train": ["rows.tsv"], "val_fraction": 0, "text": [0], "label": 1,
            "context": 8,
        },
        "task": {"type": "classification"},
        "train": {"steps": 1, "batch_size": 2, "optimizer": {"type": "adamw", "lr": 1e-12}},
    }  # fmt: skip
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    found = cli("finetune", "--from", folder, tmp_path / "spec.yaml", "--precision", "fp32")
    assert found.status == 0, found.err
    assert "newly initialised" in found.err
    assert ": head.weight, head.bias\n" in found.err
    trained = load_checkpoint(Path(found.out.strip()), "cpu").model
    pooler = model.get_submodule("bert.pooler" if head != "Model" else "pooler")
    torch.testing.assert_close(trained.get_parameter("pooler.weight"), pooler.dense.weight)


def test_labels_have_the_names_of_the_config(tmp_path: Path, cli: Any) -> None:
    model = theirs("DistilBert", "ForSequenceClassification")
    folder = with_tokenizer(saved(model, tmp_path), "[MASK]")
    _, info = read(folder)
    assert info.classes == ("no", "so so", "yes")
    found = cli("predict", folder, "w20 w21 w9")
    logits = outputs(model, torch.tensor([[5, 20, 21, 9, 6]]), torch.ones(1, 5).bool())
    best = json.loads(found.out)["top"][0]
    assert best["label"] == LABELS["id2label"][int(logits.argmax())]
    assert best["probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "head", "options", "text"),
    [
        ("Bert", "Model", {"is_decoder": True}, "is_decoder: 'True' is not built"),
        ("Bert", "Model", {"hidden_act": "relu"}, "hidden_act: 'relu' is not built"),
        ("Bert", "Model", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("Bert", "ForSequenceClassification", {"problem_type": "rank"}, "problem_type: .rank. is"),
        ("Bert", "Model", {"embedding_size": 4}, "embedding_size: not known for this family"),
        ("Roberta", "Model", {"pad_token_id": 3}, "pad_token_id: '3' is not built"),
        ("DistilBert", "Model", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds"),
        ("ModernBert", "Model", {"decoder_bias": False}, "decoder_bias: 'False' is not built"),
        ("Bert", "ForQuestionAnswering", {}, "architectures: BertForQuestionAnswering is not"),
    ],
)
def test_other_options_are_refused(
    name: str, head: str, options: dict[str, Any], text: str, tmp_path: Path
) -> None:
    config = getattr(transformers, f"{name}Config")(**{**CONFIGS[name], **options})
    config.architectures = [name + head]
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=text):
        opening.describe(tmp_path)


def test_what_no_class_of_theirs_computes_is_not_exported(tmp_path: Path) -> None:
    folder = saved(theirs("Bert", "ForSequenceClassification"), tmp_path)
    described = opening.describe(folder)
    mean = described.model.model_copy(update={"pool": "mean"})
    with pytest.raises(SpecError, match=r"the nearest is bert.*, which lacks model.pool: mean"):
        express(mean, described.info, described.task)
    tagger = replace(described.info, tagged=True)  # which reads no pool
    assert express(mean, tagger, "tagging").config["architectures"] == [
        "BertForTokenClassification"
    ]
