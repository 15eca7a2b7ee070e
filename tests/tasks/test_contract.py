"""What every task answers, so that a new one is a file and a line in the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pytest
import torch
from conftest import Result

from bigmodel_cli.config import NO_DATASET, DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.metrics import MetricInfo
from bigmodel_cli.models import learners
from bigmodel_cli.tasks import TASKS, Answers, Batch, Scores, Task
from bigmodel_cli.tasks.base import AnyTaskOptions


class HuberOptions(AnyTaskOptions):
    """A task that exists in this test alone, with an option that has no default."""

    type: Literal["huber"] = "huber"
    output: ClassVar[str] = "labels"
    delta: float

    def build(self, info: DatasetInfo = NO_DATASET) -> Huber:
        return Huber(self)


class Huber(Task):
    name = "huber"
    needs = "images"
    reads = ("image", "wanted")
    metrics: ClassVar = {
        "loss": MetricInfo(False),
        "near": MetricInfo(True, "within delta", (0.0, 1.0), percent=True),
    }

    def __init__(self, options: HuberOptions) -> None:
        self.options = options

    def forward(self, model: Any, batch: Batch, training: bool = True) -> Any:
        return model(batch["image"])

    def loss(self, outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        delta = self.options.delta
        return torch.nn.functional.huber_loss(
            outputs, batch["wanted"], reduction="sum", delta=delta
        ), torch.tensor(1)

    def score(self, outputs: Any, batch: Batch) -> tuple[Scores, Answers]:
        return {}, {}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"root": metrics["loss"] ** 0.5}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_can_be_learnt_and_what_decides_is_a_metric_of_it(name: str) -> None:
    options = TASKS[name]
    assert options.model_fields["type"].default == name
    assert learners(options.output)
    task = options.for_predictions().build()
    deciding = (
        get_args(options.model_fields["metric"].annotation)
        if "metric" in options.model_fields
        else [task.metric]
    )
    assert {*deciding, *task.measured, task.derived_from} <= task.metrics.keys()
    assert all(task.info(name).higher_is_better for name in deciding) == (
        not {"loss", "wer", "cer"} & set(deciding)
    )


def test_a_task_with_an_option_without_default_scores_a_file_of_samples_again(
    cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "huber", HuberOptions)
    rows = [
        {
            "task": "huber",
            "scores": {"loss": 2.0 * i, "near": i % 2},
            "counts": {"loss": 1, "near": 1},
        }
        for i in range(8)
    ]
    Path("samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = cli("eval", "--rescore", "samples.jsonl", "--json")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert (found["task"], found["loss"], found["near"]) == ("huber", 7.0, 0.5)
    assert found["root"] == pytest.approx(7.0**0.5)
    assert found["metrics"]["near"]["signature"] == "within delta"
    text = cli("eval", "--rescore", "samples.jsonl").out
    assert "50.00 %" in text
    assert "7.0000" in text


def test_a_task_checks_what_the_data_has() -> None:
    task, images = Huber(HuberOptions(delta=1.0)), DatasetInfo(image_shape=(1, 4, 4))
    task.check(None, images, frozenset(["image", "wanted", "more"]), "here")
    with pytest.raises(
        SpecError, match=r"task.type: huber needs data with images, and data.type: here has none"
    ):
        task.check(None, DatasetInfo(vocab_size=4), frozenset(["image", "wanted"]), "here")
    with pytest.raises(
        SpecError,
        match=r"task.type: huber reads image, wanted, and data.type: here has image, label$",
    ):
        task.check(None, images, frozenset(["label", "image"]), "here")
