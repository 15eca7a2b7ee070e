"""Sets of labels: mAP and F1 are scikit-learn's, with ties and labels that no item has; thresholds;
runs from lists and images.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, loss_of
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.metrics.intervals import estimate
from bigmodel_cli.metrics.sets import (
    average_precision,
    best_threshold,
    f1_of_sets,
    mean_average_precision,
)
from bigmodel_cli.tasks.multilabel import Multilabel, MultilabelOptions

Cli = Callable[..., Result]
FACTS = DatasetInfo(classes=("a", "b", "true"), class_counts=(8, 1, 0), label_sets=True, items=10)


def task(**options: Any) -> Multilabel:
    return MultilabelOptions.model_validate(options).build(FACTS)


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_average_precision_is_scikit_learns_also_without_each_item_and_with_ties(
    levels: int,
) -> None:
    draw = np.random.default_rng(levels)
    for count in (1, 2, 9, 23):
        scores, truth = draw.integers(0, levels, count) / levels, draw.random(count) < 0.4
        truth[0] = True
        value, without = average_precision(torch.from_numpy(scores), torch.from_numpy(truth))
        assert float(value) == pytest.approx(average_precision_score(truth, scores))
        for i in range(count):
            rest = np.delete(truth, i)
            wanted = average_precision_score(rest, np.delete(scores, i)) if rest.any() else math.nan
            assert float(without[i]) == pytest.approx(wanted, nan_ok=True), (count, i)
    assert math.isnan(
        average_precision(torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool))[0]
    )


def test_figures_of_sets_are_scikit_learns_and_labels_that_no_item_has_are_left_out() -> None:
    draw = np.random.default_rng(8)
    truth, scores = draw.random((19, 4)) < 0.3, draw.random((19, 4)).round(1)
    truth[:, 1], scores[:, 1] = False, 0.2  # a label that is neither there nor said
    truth[4] = False  # an empty set
    said = scores >= 0.5
    measure = mean_average_precision(torch.from_numpy(scores), torch.from_numpy(truth))
    assert measure.total() == pytest.approx(
        average_precision_score(truth[:, [0, 2, 3]], scores[:, [0, 2, 3]])
    )
    interval = estimate(measure)
    assert interval.low < interval.value < interval.high <= 1
    found = f1_of_sets(torch.from_numpy(truth), torch.from_numpy(said))
    for average in ("micro", "macro"):
        wanted = f1_score(truth, said, average=average, zero_division=np.nan)
        assert found[f"{average}_f1"].total() == pytest.approx(wanted)
    none = f1_of_sets(torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool))
    assert all(math.isnan(m.total()) for m in none.values())


def test_the_best_threshold_is_that_of_the_highest_f1_and_never_between_equal_scores() -> None:
    draw = np.random.default_rng(2)
    for levels in (3, 10**6):
        scores, truth = draw.integers(1, levels, 31) / levels, draw.random(31) < 0.3
        found = best_threshold(torch.from_numpy(scores), torch.from_numpy(truth))
        assert found is not None
        best = max(f1_score(truth, scores >= value) for value in set(scores.tolist()))
        assert f1_score(truth, scores >= found) == pytest.approx(best)
    assert (
        best_threshold(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool)) is None
    )


def test_the_loss_is_binary_cross_entropy_with_weights_of_those_that_have_a_label() -> None:
    torch.manual_seed(1)
    outputs, truth = torch.randn(5, 3), torch.rand(5, 3) < 0.4
    truth[2] = False
    p = 1 / (1 + np.exp(-outputs.double().numpy()))
    for options, weights in (
        ({}, [1, 1, 1]),
        ({"pos_weight": "balanced"}, [0.25, 9, 1]),
        ({"pos_weight": {True: 3}}, [1, 1, 3]),
    ):
        total, count = loss_of(task(**options), lambda x: x, {"image": outputs, "labels": truth})  # type: ignore[arg-type]
        wanted = -np.where(truth.numpy(), np.array(weights) * np.log(p), np.log(1 - p)).mean()
        assert float(total / count) == pytest.approx(wanted, rel=1e-5)
    scores, said = task(thresholds={"a": 0.0, "b": 1}).score(
        outputs, {"image": outputs, "labels": truth}
    )
    assert [("a" in names, "b" in names) for names in said["prediction"]] == [(True, False)] * 5
    assert said["reference"][2] == []
    exact = [
        names == held for names, held in zip(said["prediction"], said["reference"], strict=True)
    ]
    assert scores["exact"][0].tolist() == exact
    with pytest.raises(
        SpecError, match=r"task.thresholds: 'aa' is not a label of the data; they are a, b, true"
    ):
        task(thresholds={"aa": 0.2})


SPEC = """
model: {type: encoder, dim: 8,
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu, hidden: 8}}]}
data:
  {type: table, train: [a.jsonl], val: [b.jsonl], text: [text], label: tags, label_separator: "|",
    tokenizer: bytes, context: 12}
task: multilabel
train: {steps: 3, batch_size: 8, precision: fp32, optimizer: {lr: 1e-2}}
"""


def test_from_lists_of_labels_to_sets_with_thresholds_of_the_validation(cli: Cli) -> None:
    held = [["x"], [], ["y", "x"], "y | x", ["z", "y"]]
    rows = [json.dumps({"text": f"w{n % 5}", "tags": held[n % 5]}) for n in range(30)]
    Path("a.jsonl").write_text("\n".join(rows))
    Path("b.jsonl").write_text("\n".join([*rows[:4], *rows[5:9]]))
    Path("a.yaml").write_text(SPEC)
    trained = cli("pretrain", "a.yaml", "--out", "a")
    assert trained.status == 0, trained.err
    assert "the val split has no row of class z" in trained.err
    judged = cli("eval", "a", "--json", "--predictions", "s.jsonl")
    found = json.loads(judged.out)
    tuned = found["tuned"]["task.thresholds"]
    assert (tuned.keys(), tuned["z"]) == ({"x", "y", "z"}, 0.5)  # the validation has no z
    change = re.findall(r"--set '(.*)'", judged.err)[0]
    better = json.loads(cli("eval", "a", "--json", "--set", change).out)
    assert better["macro_f1"] >= found["macro_f1"]
    assert better["map"] == found["map"]
    again = json.loads(cli("eval", "--rescore", "s.jsonl", "--json").out)
    assert {n: again[n] for n in found["metrics"]} == pytest.approx(
        {n: found[n] for n in found["metrics"]}
    )
    (record,) = map(
        json.loads,
        cli("predict", "a", "--top", 2, "--set", "task.thresholds=0", "w1").out.splitlines(),
    )
    assert (record["labels"], len(record["top"])) == (["x", "y", "z"], 2)
    compared = cli("eval", "a", "--compare", "a", "--json")
    assert json.loads(compared.out)["differences"]["micro_f1"]["p"] == 1
    assert (
        "not compared, since all items are ranked at once, and none can be swapped: map"
        in compared.err
    )
    refused = cli("pretrain", "a.yaml", "--set", "task=classification")
    assert (
        refused.status,
        "classification needs data with labels, and data.type: table has sets of labels"
        in refused.err,
    ) == (
        2,
        True,
    )


def test_from_images_with_several_labels_or_numbers(cli: Cli) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def png(n: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (6, 6), 20 * n).save(file, "PNG")
        return file.getvalue()

    images, numbers = [png(n % 12) for n in range(24)], [float(n % 12) for n in range(24)]
    table = {
        "image": images,
        "n": numbers,
        "tags": [["even"] * (n % 2 == 0) + ["low"] * (n % 12 < 6) for n in range(24)],
    }
    pq.write_table(pa.table(table), "a.parquet")
    Path("a.yaml").write_text(
        "model: {type: cnn, layers: [{type: conv, channels: 2}, {type: flatten}, {type: dense,"
        " units: classes}]}\ndata: {type: parquet_images, train: [a.parquet], label_column: tags,"
        " label_separator: ','}\ntask: multilabel\ntrain: {steps: 2, batch_size: 6, precision:"
        " fp32}\n"
    )
    assert cli("pretrain", "a.yaml", "--out", "a").status == 0
    assert {"map", "exact", "tuned"} <= json.loads(cli("eval", "a", "--json").out).keys()
    Path("a.png").write_bytes(images[3])
    assert cli("attend", "a", "a.png", "--json").status == 0
    other = (
        "--set",
        "data={type: parquet_images, train: [a.parquet], target_columns: [n]}",
        "--set",
        "task=regression",
    )
    assert cli("finetune", "--from", "a", "a.yaml", *other, "--out", "b").status == 0
    assert json.loads(cli("predict", "b", "a.png").out)["numbers"].keys() == {"n"}
    looked = json.loads(cli("attend", "b", "a.png", "--json").out)
    assert (looked["label"], "value" in looked, "probability" in looked) == ("n", True, False)
    assert (
        cli("eval", "b", "--set", "data.target_columns=[]", "--set", "data.label_column=n").status
        == 2
    )
