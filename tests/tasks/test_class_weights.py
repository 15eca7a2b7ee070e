"""Uneven classes: weights in the loss are torch's, over however many micro-batches; counts come
with every form of data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, loss_of, scores_of
from tones import write

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import open_data
from bigmodel_cli.data.audio.audio import AudioOptions
from bigmodel_cli.data.image.images import FolderOptions
from bigmodel_cli.errors import SpecError
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.tasks.classification import Classification, ClassificationOptions, class_weights
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.step import train_step

Cli = Callable[..., Result]
FACTS = DatasetInfo(classes=("a", "b", "true"), class_counts=(75, 20, 5))


def task(weights: Any, smoothing: float = 0.0) -> Classification:
    return ClassificationOptions(class_weights=weights, label_smoothing=smoothing).build(FACTS)


def test_balanced_weights_let_each_class_count_as_much() -> None:
    weights = class_weights(ClassificationOptions(class_weights="balanced"), FACTS)
    assert weights == pytest.approx((100 / 3 / 75, 100 / 3 / 20, 100 / 3 / 5))
    assert [w * n for w, n in zip(weights, FACTS.class_counts, strict=True)] == pytest.approx(
        [100 / 3] * 3
    )
    lacking = DatasetInfo(classes=("a", "b", "c"), class_counts=(30, 0, 10))
    found = class_weights(ClassificationOptions(class_weights="balanced"), lacking)
    assert (found[0] * 30, found[2] * 10) == pytest.approx((20, 20))
    assert np.isfinite(found).all()
    assert class_weights(ClassificationOptions(class_weights={True: 3, "b": 0.5}), FACTS) == (
        1.0,
        0.5,
        3.0,
    )
    assert class_weights(ClassificationOptions(), FACTS) == ()
    numbers = DatasetInfo(classes=("0", "1"))
    assert class_weights(ClassificationOptions(class_weights={1: 4.5}), numbers) == (1.0, 4.5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_that_of_the_formula_and_of_torch(smoothing: float) -> None:
    torch.manual_seed(3)
    logits, labels = torch.randn(7, 3), torch.tensor([0, 0, 2, 1, 0, 2, 0])
    weights = {"a": 0.2, "b": 1.5, "true": 7.0}
    total, count = loss_of(
        task(weights, smoothing), lambda x: x, {"image": logits, "label": labels}
    )  # type: ignore[arg-type]
    w, x = np.array([0.2, 1.5, 7.0]), logits.double().numpy()
    logs = x - np.log(np.exp(x).sum(1, keepdims=True))
    one_hot = np.eye(3)[labels.numpy()]
    wanted = (((1 - smoothing) * one_hot + smoothing / 3) * w * -logs).sum() / w[
        labels.numpy()
    ].sum()
    assert float(total / count) == pytest.approx(wanted, rel=1e-6)
    reference = torch.nn.CrossEntropyLoss(torch.tensor([0.2, 1.5, 7.0]), label_smoothing=smoothing)
    assert float(total / count) == pytest.approx(float(reference(logits, labels)), rel=1e-6)


def test_micro_batches_are_the_whole_and_a_small_sum_of_weights_divides() -> None:
    torch.manual_seed(4)
    inputs, labels = torch.randn(6, 4), torch.tensor([0, 0, 0, 2, 0, 1])
    weights = {"a": 0.05, "b": 0.1, "true": 0.3}  # 0.6 in all: below 1
    reference = torch.nn.Linear(4, 3)
    start = {name: p.detach().clone() for name, p in reference.named_parameters()}
    mean = torch.nn.CrossEntropyLoss(torch.tensor([0.05, 0.1, 0.3]))(reference(inputs), labels)
    mean.backward()
    options = TrainOptions.model_validate(
        {"steps": 1, "batch_size": 6, "precision": "fp32", "max_grad_norm": None,
         "optimizer": {"type": "sgd", "lr": 0.5, "momentum": 0.0, "nesterov": False,
          "weight_decay": 0.0}}
    )  # fmt: skip
    for sizes in ((6,), (1, 2, 3), (1,) * 6):
        model = torch.nn.Linear(4, 3)
        model.load_state_dict(start)
        state = TrainState(model, options.optimizer.build(named_weights(model)), None)
        parts = zip(inputs.split(sizes), labels.split(sizes), strict=True)
        batches = [{"image": x, "label": y} for x, y in parts]
        result = train_step(
            state, Objective(task(weights)), options, batches, torch.device("cpu"), 0.5
        )
        assert result.loss == pytest.approx(mean.item(), rel=1e-5)
        assert (result.size, result.count) == (6, pytest.approx(0.6))
        for name, p in reference.named_parameters():
            moved = (start[name] - dict(model.named_parameters())[name]) / 0.5
            torch.testing.assert_close(moved, p.grad, atol=1e-6, rtol=1e-4)


def test_metrics_count_every_item_once() -> None:
    logits = torch.randn(5, 3)
    batch = {"image": logits, "label": torch.tensor([0, 1, 2, 0, 0])}
    plain, weighted = (scores_of(task(w), lambda x: x, batch) for w in ("none", "balanced"))  # type: ignore[arg-type]
    assert all(torch.equal(plain[name][i], weighted[name][i]) for name in plain for i in (0, 1))


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(
        SpecError,
        match=r"task.class_weights: 'bb' is not a label of the data; they are a, b, true; did you"
        r" mean b\?",
    ):
        task({"bb": 2.0})
    with pytest.raises(SpecError, match="the training items of each class are not known"):
        ClassificationOptions(class_weights="balanced").build(DatasetInfo(classes=("a", "b")))
    for bad in ({"a": 0.0}, {"a": -1.0}, "even", {"a": float("nan")}):
        with pytest.raises(ValueError, match="class_weights"):
            ClassificationOptions.model_validate({"class_weights": bad})


def test_facts_of_older_checkpoints_load() -> None:
    values = {k: v for k, v in FACTS.to_json().items() if k != "class_counts"}
    assert DatasetInfo.from_json(values) == DatasetInfo(classes=FACTS.classes)
    assert DatasetInfo.from_json(json.loads(json.dumps(FACTS.to_json()))) == FACTS


def test_images_and_recordings_count_their_classes_too() -> None:
    from PIL import Image

    for label, count in (("bright", 6), ("dark", 3)):
        for index in range(count):
            Path("pictures/train", label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * index + 5).save(f"pictures/train/{label}/{index}.png")
    values = {"root": "pictures", "val_fraction": 0.0}
    data = open_data(FolderOptions.model_validate(values), base=Path(), say=lambda _: None)
    assert (data.info.classes, data.info.class_counts) == (("bright", "dark"), (6, 3))
    unlabelled = FolderOptions.model_validate({**values, "labels": False})
    assert open_data(unlabelled, base=Path(), say=lambda _: None).info.class_counts == ()

    write(count=4)
    Path("sounds/high_ann_0.wav").unlink()
    options = {
        "files": ["sounds"],
        "pattern": r"(?P<label>\w+)_\w+_(?P<index>\d+)\.wav$",
        "rate": 8000,
        "mels": 16,
    }
    sound = AudioOptions.model_validate({**options, "split": {"val": {"index": [1]}}})
    info = open_data(sound, base=Path(), say=lambda _: None).info
    labels = [p.name for p in Path("sounds").iterdir() if not p.name.endswith("_1.wav")]
    wanted = tuple(sum(name.startswith(f"{c}_") for name in labels) for c in ("high", "low"))
    assert (info.classes, info.class_counts) == (("high", "low"), wanted)
    assert info.class_counts[0] < info.class_counts[1]
    units = AudioOptions.model_validate({**options, "units": "words"})
    assert open_data(units, base=Path(), say=lambda _: None).info.class_counts == ()


SPEC = """\
model: {type: encoder, dim: 16, pool: mean, blocks: [{mixer: {type: attention, num_heads: 2}}]}
data: {type: table, train: [a.tsv], text: [0], label: 1, context: 16, tokenizer: {type: bytes}}
task: {type: classification}
train: {steps: 12, batch_size: 8, precision: fp32, memory_format: contiguous, compile: "off",
  optimizer: {lr: 1e-2}}
"""


def test_uneven_classes_are_reported_and_weighted(cli: Cli) -> None:
    Path("a.tsv").write_text(
        "".join(f"item {i}\t{'rare' if i % 20 == 0 else 'usual'}\n" for i in range(200))
    )
    Path("spec.yaml").write_text(SPEC.replace("type: table,", "type: table, val_fraction: 0,"))
    plain = cli("pretrain", "spec.yaml", "--out", "plain")
    assert plain.status == 0, plain.err
    assert (
        "the classes are uneven: 'usual' has 190 of 200 training items and 'rare' 10" in plain.err
    )
    assert "always says 'usual' gets 95.0 % right" in plain.err
    balanced = cli("pretrain", "spec.yaml", "--out", "run", "--set", "task.class_weights=balanced")
    assert balanced.status == 0, balanced.err
    assert "weight of each class in the loss: rare 10, usual 0.526" in balanced.err
    info = json.loads(Path(balanced.out.strip(), "facts.json").read_text())
    assert (info["classes"], info["class_counts"]) == (["rare", "usual"], [10, 190])
    for name in ("plain", "run"):
        scored = json.loads(cli("eval", name, "--split", "train", "--json").out)
        assert scored["metrics"]["loss"]["count"] == 200
    unknown = cli("pretrain", "spec.yaml", "--out", "no", "--set", "task.class_weights={rate: 3.0}")
    assert (unknown.status, "did you mean rare?" in unknown.err) == (2, True)
    Path("a.tsv").write_text("".join(f"item {i}\t{i % 2}\n" for i in range(40)))
    assert "uneven" not in cli("pretrain", "spec.yaml", "--dry-run").err
