"""Heads for numbers and for sets of labels equal transformers', and go back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import drawn, off, read, saved, settings, tensors, with_tokenizer
from torch import Tensor

from bigmodel_cli.convert import opening
from bigmodel_cli.errors import CheckpointError

transformers = pytest.importorskip("transformers")

Cli = Callable[..., Any]
POST = {
    "vocab_size": 37, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 28, "max_position_embeddings": 26,
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "Bert": POST,
    "Roberta": {**POST, "type_vocab_size": 1},
    "XLMRoberta": {**POST, "type_vocab_size": 1},
    "DistilBert": {
        "vocab_size": 37, "dim": 20, "n_layers": 2, "n_heads": 2, "hidden_dim": 28,
        "max_position_embeddings": 26,
    },
    "ModernBert": {**POST, "local_attention": 6, "classifier_pooling": "mean"},
}  # fmt: skip
SEEN = {
    "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 10,
    "patch_size": 5,
}  # fmt: skip
IMAGES: dict[str, dict[str, Any]] = {
    "ViT": {**SEEN, "intermediate_size": 28},
    "Dinov2": SEEN,
    "Dinov2WithRegisters": {**SEEN, "num_register_tokens": 2},
}
NAMES = ("calm", "gay", "so so")
KINDS: dict[str, dict[str, Any]] = {
    "one": {"num_labels": 1},
    "number": {"id2label": {0: "age"}, "problem_type": "regression"},
    "numbers": {"id2label": dict(enumerate(NAMES)), "problem_type": "regression"},
    "sets": {"id2label": dict(enumerate(NAMES)), "problem_type": "multi_label_classification"},
    "set": {"id2label": {0: "gay"}, "problem_type": "multi_label_classification"},
}


def theirs(name: str, kind: str, **more: Any) -> Any:
    values = {**(TEXTS | IMAGES)[name], **KINDS[kind], **more}
    if "id2label" in values:
        values["label2id"] = {label: i for i, label in values["id2label"].items()}
    if name in TEXTS:
        values["pad_token_id"] = {"Bert": 0, "DistilBert": 0}.get(name, 1)
    config = getattr(transformers, f"{name}Config")(**values)
    head = "ForSequenceClassification" if name in TEXTS else "ForImageClassification"
    return drawn(getattr(transformers, name + head)(config))


def logits(model: Any, inputs: Tensor, **more: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(inputs, **more).logits
    return y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEXTS | IMAGES)
def test_logits_are_equal_and_go_back_to_the_bit(
    name: str, kind: str, tmp_path: Path, cli: Cli
) -> None:
    model = theirs(name, kind)
    folder = saved(model, tmp_path / "theirs")
    ours, info = read(folder)
    names = tuple(model.config.id2label.values())
    if "set" in kind:
        assert (info.classes, info.targets, info.label_sets) == (names, (), True)
    else:
        assert (info.classes, info.targets) == ((), names)
        assert (info.target_mean, info.target_std) == ((0.0,) * len(names), (1.0,) * len(names))
    torch.manual_seed(1)
    if name in TEXTS:
        inputs = torch.randint(8, 37, (3, 13))
        real = torch.ones(3, 13, dtype=torch.bool)
        real[1, 4:] = False
        padded = inputs.masked_fill(~real, model.config.pad_token_id)
        more = {"attention_mask": real.long()}
        with torch.no_grad():
            got, alone = ours(inputs.masked_fill(~real, -1)), ours(inputs[1:2, :4])
        assert off(got[1:2], alone) <= 1e-5
    else:
        padded, more = torch.randn(3, 3, 10, 10), {}
        with torch.no_grad():
            got = ours(padded)
    want = logits(model, padded, **more)
    assert off(got, want) <= 1e-5
    found = cli("export", folder, tmp_path / "out")
    assert found.status == 0, found.err
    before, after = tensors(folder), tensors(tmp_path / "out")
    left = {n for n in before if "mask_token" in n}
    assert before.keys() - left == after.keys()
    assert all(torch.equal(after[n], before[n]) for n in after)
    again = type(model) if name != "XLMRoberta" else transformers.RobertaForSequenceClassification
    back = again.from_pretrained(tmp_path / "out").eval()
    assert off(logits(back, padded, **more), want) <= 1e-6  # of the same weights
    for key in ("id2label", "label2id", "problem_type", "num_labels"):
        assert getattr(back.config, key) == getattr(model.config, key)


def test_a_cross_encoder_reads_pairs_and_gives_its_number(tmp_path: Path, cli: Cli) -> None:
    own = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    model = theirs("Bert", "one", **own)
    folder = with_tokenizer(saved(model, tmp_path / "theirs"), "[MASK]")
    found = cli("predict", folder, "w20 w21\tw9", "w30\tw20 w21 w8")
    assert found.status == 0, found.err
    assert "CrossEncoder" not in found.err
    for line, row, types in zip(
        found.out.splitlines(),
        ([5, 20, 21, 6, 9, 6], [5, 30, 6, 20, 21, 8, 6]),
        ([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]),
        strict=True,
    ):
        want = logits(model, torch.tensor([row]), token_type_ids=torch.tensor([types]))
        assert json.loads(line)["numbers"] == {"LABEL_0": pytest.approx(float(want), abs=2e-6)}
    assert settings(type(model).from_pretrained(folder).config)[next(iter(own))]
    assert cli("export", folder, tmp_path / "out").status == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert own.items() <= written.items()
    assert "problem_type" not in written


def test_what_sentence_transformers_applies_is_said(tmp_path: Path, cli: Cli) -> None:
    folder = with_tokenizer(saved(theirs("DistilBert", "one"), tmp_path / "theirs"), None)
    found = cli("predict", folder, "w20 w21")  # not marked as a CrossEncoder: a text
    want = logits(theirs("DistilBert", "one"), torch.tensor([[5, 20, 21, 6]]))
    assert json.loads(found.out)["numbers"]["LABEL_0"] == pytest.approx(float(want), abs=2e-6)
    assert "a CrossEncoder of sentence-transformers applies Sigmoid to it" in found.err


def test_sets_of_a_text_and_of_an_image_are_those_of_their_probabilities(
    tmp_path: Path, cli: Cli
) -> None:
    model = theirs("Roberta", "sets")
    folder = with_tokenizer(saved(model, tmp_path / "theirs"), None)
    found = json.loads(cli("predict", folder, "w20 w21 w9").out)
    want = logits(model, torch.tensor([[5, 20, 21, 9, 6]])).sigmoid()[0].tolist()
    assert sorted(found["labels"]) == sorted(
        n for n, p in zip(NAMES, want, strict=True) if p >= 0.5
    )
    given = {each["label"]: each["probability"] for each in found["top"]}
    assert given == {n: pytest.approx(p, abs=2e-6) for n, p in zip(NAMES, want, strict=True)}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"problem_type": "ranking"}, "problem_type: 'ranking' is not built"),
        ({"problem_type": "single_label_classification"}, "and there is one output"),
        ({"id2label": {}}, "id2label"),
    ],
)
def test_heads_that_contradict_themselves_are_refused(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    folder = saved(theirs("Bert", "number"), tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(CheckpointError, match=text):
        opening.describe(folder)


def test_a_published_number_is_judged_and_finetuned_under_another_name(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    with_tokenizer(saved(theirs("Bert", "one", **own), tmp_path / "theirs"), "[MASK]")
    rows = [f"w{8 + n} w{9 + n % 5}\tw{30 - n}\t{40 + n % 7}" for n in range(20)]
    Path("rows.tsv").write_text("\n".join(["a\tb\tgrade", *rows]))
    Path("spec.yaml").write_text(
        "data: {type: table, train: [rows.tsv], text: [a, b], targets: [grade], context: 12,"
        " val_fraction: 0.3}\ntask: regression\n"
        "train: {steps: 1, batch_size: 4, precision: fp32, optimizer: {type: sgd, lr: 1.0e-12}}\n"
    )
    found = cli("finetune", "--from", "theirs", "spec.yaml", "--out", "tuned", "--json")
    assert found.status == 0, found.err
    assert "they are taken to be, in order: LABEL_0: grade" in found.err
    assert "not compared, since the two scale their numbers otherwise: loss" in found.err
    metrics = json.loads(found.out)["gains"]["task"]["metrics"]
    mae = metrics["mae"]["gain"]
    assert mae["first"] == pytest.approx(mae["second"], rel=1e-5)  # the same function
    assert not any("gain" in metrics[name] for name in ("loss", "mae_of_mean"))
    pair = "w20 w21\tw9"
    before, after = (json.loads(cli("predict", at, pair).out) for at in ("theirs", "tuned"))
    assert after["numbers"] == {
        "grade": pytest.approx(before["numbers"]["LABEL_0"], rel=1e-4, abs=1e-4)
    }
