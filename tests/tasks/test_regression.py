"""Regression: figures are scikit-learn's, whatever the numbers' size; and a run from a table to
numbers with names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, loss_of
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.metrics.intervals import estimate
from bigmodel_cli.tasks.regression import Regression, RegressionOptions

Cli = Callable[..., Result]
FACTS = DatasetInfo(
    targets=("price", "size", "year"), target_mean=(3.0, -2e6, 1e9), target_std=(0.5, 40.0, 3.0)
)


def task(loss: str = "mse", info: DatasetInfo = FACTS) -> Regression:
    return RegressionOptions.model_validate({"loss": loss}).build(info)


def answers(names: tuple[str, ...], **sides: Any) -> dict[str, list[Any]]:
    return {
        side: [dict(zip(names, row, strict=True)) for row in rows.tolist()]
        for side, rows in sides.items()
    }


@pytest.mark.parametrize("count", [1, 3])
def test_figures_are_those_of_scikit_learn_and_per_number_where_there_are_several(
    count: int,
) -> None:
    draw = np.random.default_rng(3)
    truth = draw.normal(size=(17, count)) * [0.5, 40.0, 3.0][:count] + [3.0, -2e6, 1e9][:count]
    said, baseline = truth + draw.normal(size=truth.shape), np.tile(truth[:1] + 2, (17, 1))
    given = answers(FACTS.targets[:count], reference=truth, prediction=said, baseline=baseline)
    found = task().measures(given)
    references = {"mae": mean_absolute_error, "rmse": root_mean_squared_error, "r2": r2_score}
    for name, function in references.items():
        assert found[name].total() == pytest.approx(function(truth, said), rel=1e-6)
        for i, target in enumerate(FACTS.targets[:count] if count > 1 else ()):
            assert found[f"{name}_{target}"].total() == pytest.approx(
                function(truth[:, i], said[:, i]), rel=1e-6
            )
    assert len(found) == (3 if count == 1 else 12)
    means = task().baselines(given, ())
    assert {name: m.total() for name, m in means.items()} == pytest.approx(
        {f"{n}_of_mean": references[n](truth, baseline) for n in ("mae", "rmse")}
    )
    interval = estimate(found["r2"])
    # the jackknife's values
    without = [r2_score(np.delete(truth, i, 0), np.delete(said, i, 0)) for i in range(17)]
    assert interval.method == "jackknife t"
    assert interval.low < interval.value < interval.high <= 1
    assert min(without) > interval.low


def test_numbers_that_are_constant_over_the_items_have_no_r2_and_a_single_item_neither() -> None:
    truth = np.array([[1e9, 1.0], [1e9, 2.0], [1e9, 4.0]])
    said = truth + np.array([[1.0, 0.0], [2.0, 1.0], [0.0, 0.0]])
    found = task().measures(answers(("flat", "other"), reference=truth, prediction=said))
    assert math.isnan(found["r2_flat"].total())
    assert (
        found["r2"].total()
        == found["r2_other"].total()
        == pytest.approx(r2_score(truth[:, 1], said[:, 1]))
    )
    alone = task().measures(
        answers(("x",), reference=np.array([[2.5]]), prediction=np.array([[2.0]]))
    )
    assert (alone["mae"].total(), alone["rmse"].total()) == (0.5, 0.5)
    assert math.isnan(alone["r2"].total())
    assert math.isnan(estimate(alone["r2"]).low)


@pytest.mark.parametrize("loss", ["mse", "huber", "mae"])
def test_the_loss_is_that_of_scaled_numbers(loss: str) -> None:
    torch.manual_seed(5)
    outputs = 2 * torch.randn(4, 3)
    mean, std = np.array(FACTS.target_mean), np.array(FACTS.target_std)
    truth = mean + std * np.random.default_rng(0).normal(size=(4, 3))
    batch = {"image": outputs, "numbers": torch.from_numpy(truth)}
    error = np.abs(outputs.double().numpy() - (truth - mean) / std)
    wanted = {
        "mse": error**2,
        "mae": error,
        "huber": np.where(error < 1, error**2 / 2, error - 0.5),
    }[loss]
    total, count = loss_of(task(loss), lambda x: x, batch)  # type: ignore[arg-type]
    assert float(total / count) == pytest.approx(wanted.mean(), rel=1e-5)
    scores, said = task(loss).score(outputs, batch)
    assert (scores["loss"][0] / scores["loss"][1]).numpy() == pytest.approx(
        wanted.mean(1), rel=1e-5
    )
    assert said["reference"][2]["size"] == truth[2, 1]
    assert said["prediction"][2]["year"] == pytest.approx(
        1e9 + 3.0 * float(outputs[2, 2]), abs=1e-4
    )
    assert task().predictions(outputs[2:3], 1)[0]["numbers"]["year"] == pytest.approx(
        said["prediction"][2]["year"], abs=1e-5
    )
    assert task().predictions(outputs[:1], 1)[0]["numbers"]["price"] == pytest.approx(
        3 + 0.5 * float(outputs[0, 0])
    )


SPEC = """
model: {type: encoder, dim: 8,
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu, hidden: 8}}]}
data: {type: table, train: [a.csv], text: [text], targets: [price, flat],
  tokenizer: {type: bytes}, context: 12}
task: regression
train: {steps: 3, batch_size: 8, precision: fp32, optimizer: {lr: 1e-2}}
"""


def test_from_a_table_to_numbers_with_names(cli: Cli) -> None:
    Path("a.csv").write_text(
        "text,price,flat\n"
        + "".join(f"w{n % 7} {'x' * (n % 3)},{1000 + n},2.5\n" for n in range(40))
    )
    Path("a.yaml").write_text(SPEC)
    trained = cli("pretrain", "a.yaml", "--out", "a")
    assert trained.status == 0, trained.err
    assert "flat is 2.5 in every training item; there is nothing to learn of it" in trained.err
    judged = cli("eval", "a", "--json", "--predictions", "s.jsonl")
    found = json.loads(judged.out)
    rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    truth, said = ([row[side]["price"] for row in rows] for side in ("reference", "prediction"))
    assert found["rmse_price"] == pytest.approx(root_mean_squared_error(truth, said))
    assert found["r2_flat"] is None
    again = json.loads(cli("eval", "--rescore", "s.jsonl", "--json").out)
    assert {n: again[n] for n in found["metrics"]} == pytest.approx(
        {n: found[n] for n in found["metrics"]}, nan_ok=True
    )
    (record,) = map(json.loads, cli("predict", "a", "w1 x").out.splitlines())
    assert record["numbers"].keys() == {"price", "flat"}
    assert 900 < record["numbers"]["price"] < 1200
    assert (
        json.loads(cli("eval", "a", "--compare", "a", "--json").out)["differences"]["rmse"][
            "difference"
        ]
        == 0
    )

    # A number keeps its row of the head, by name; other items have another scale.
    more = cli("finetune", "--from", "a", "a.yaml", "--set", "data.targets=[price]", "--out", "b")
    assert "the head's rows of price are the checkpoint's, by name" in more.err
    assert "newly initialised" not in more.err
    Path("a.csv").write_text(
        "text,price,flat\n" + "".join(f"w{n % 7},{n},{n}\n" for n in range(40))
    )
    same = cli("finetune", "--from", "a", "a.yaml", "--out", "c")
    assert (same.status, "newly initialised" in same.err) == (0, False)
    info = [
        json.loads(next(Path(name).glob("checkpoints/step-*/facts.json")).read_text())
        for name in "ac"
    ]
    assert info[0]["target_mean"] != info[1]["target_mean"]
    few = cli("eval", "a", "--set", "data.targets=[price]")
    assert (
        few.status,
        "data.targets: 1 (price), and the checkpoint has 2 (price, flat)" in few.err,
    ) == (2, True)
    assert "has no labels to confuse" in cli("eval", "a", "--confusion", "c.png").err
    refused = cli("pretrain", "a.yaml", "--set", "data.targets=[]")
    assert (
        refused.status,
        "regression needs data with numbers, and data.type: table has none" in refused.err,
    ) == (
        2,
        True,
    )


def test_a_target_whose_metrics_would_have_the_names_of_the_baselines_is_refused() -> None:
    info = DatasetInfo(targets=("price", "of_mean"))
    with pytest.raises(SpecError, match="a target called of_mean would have metrics of the same"):
        RegressionOptions().build(info)
    RegressionOptions().build(DatasetInfo(targets=("of_mean",)))  # without metrics of its own
