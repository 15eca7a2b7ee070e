"""Tasks: how a batch becomes a loss, and how a model is scored.

One file per task, one name in the table.

A task gives ``forward(model, batch) -> outputs``; ``loss(outputs, batch) -> (loss_sum, count)``,
divided once by the caller, who has all the sums; and ``score(outputs, batch)``: for each metric the
sum and the count of every item, so that a metric over a split is ``sum / count`` for any batches,
and its uncertainty can be computed from the items.
"""

from __future__ import annotations

from typing import Annotated

from bigmodel_cli.config import NO_DATASET, DatasetInfo, Table
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Scores, Search, Task
from bigmodel_cli.tasks.causal_lm import CausalLMOptions
from bigmodel_cli.tasks.classification import ClassificationOptions, inputs_of
from bigmodel_cli.tasks.ctc import CTCOptions, transcribe
from bigmodel_cli.tasks.dpo import DPOOptions
from bigmodel_cli.tasks.masked_image import MaskedImage, MaskedImageOptions
from bigmodel_cli.tasks.masked_lm import MaskedLMOptions
from bigmodel_cli.tasks.multilabel import MultilabelOptions
from bigmodel_cli.tasks.regression import RegressionOptions
from bigmodel_cli.tasks.seq2seq import Seq2SeqTaskOptions
from bigmodel_cli.tasks.shown import Pictures
from bigmodel_cli.tasks.tagging import TaggingOptions

TASKS = Table(
    "task",
    AnyTaskOptions,
    CausalLMOptions,
    MaskedLMOptions,
    Seq2SeqTaskOptions,
    ClassificationOptions,
    MaskedImageOptions,
    CTCOptions,
    TaggingOptions,
    RegressionOptions,
    MultilabelOptions,
    DPOOptions,
)
TaskOptions = Annotated[AnyTaskOptions, TASKS]


def build_task(options: AnyTaskOptions, info: DatasetInfo = NO_DATASET) -> Task:
    """The task that these options describe, for the data that `info` describes.

    Raises `SpecError` where they do not fit.
    """
    return options.build(info)


__all__ = [
    "TASKS",
    "Answers",
    "Batch",
    "CausalLMOptions",
    "ClassificationOptions",
    "MaskedImage",
    "Pictures",
    "Scores",
    "Search",
    "Task",
    "TaskOptions",
    "build_task",
    "inputs_of",
    "transcribe",
]
