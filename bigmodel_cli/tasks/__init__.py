"""Tasks: what a batch is turned into, and how a model is judged.

A task gives ``loss(model, batch) -> (loss_sum, count)``, divided once by whoever has all the sums, and
``score(model, batch)``: for each metric the sum and the count of every item, so that a metric over a split is
``sum / count`` whatever the batches were, and its uncertainty can be computed from the items.
"""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import Field

from bigmodel_cli.config import NO_FACTS, Facts
from bigmodel_cli.lazy import Module, Tensor
from bigmodel_cli.tasks.causal_lm import CausalLMOptions
from bigmodel_cli.tasks.classification import ClassificationOptions, inputs_of
from bigmodel_cli.tasks.ctc import CTCOptions, transcribe
from bigmodel_cli.tasks.masked_image import MaskedImage, MaskedImageOptions
from bigmodel_cli.tasks.masked_lm import MaskedLMOptions
from bigmodel_cli.tasks.seq2seq import Seq2SeqTaskOptions
from bigmodel_cli.tasks.shown import Pictures

Batch = dict[str, Tensor]
Scores = dict[str, tuple[Tensor, Tensor]]
"""Metric name -> (sums (B,), counts (B,)), one pair per item of the batch."""

AnyTask = (
    CausalLMOptions | MaskedLMOptions | Seq2SeqTaskOptions | ClassificationOptions | MaskedImageOptions | CTCOptions
)
TaskOptions = Annotated[AnyTask, Field(discriminator="type")]
TASKS = {
    "causal_lm": CausalLMOptions,
    "masked_lm": MaskedLMOptions,
    "seq2seq": Seq2SeqTaskOptions,
    "classification": ClassificationOptions,
    "masked_image": MaskedImageOptions,
    "ctc": CTCOptions,
}


class Task(Protocol):
    """What training and evaluation need of a task."""

    name: str
    metric: str  # decides which checkpoint is best
    higher_is_better: bool
    derived_from: str  # the metric of `score` whose functions are `derived`
    needs: str  # the fact of the data without which the task makes no sense
    reads: tuple[str, ...]  # the names in a batch
    unit: str  # what `size` counts, in the plural: tokens, samples

    def loss(self, model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss to differentiate and the number of targets in it."""

    def score(self, model: Module, batch: Batch) -> Scores:
        """Per-item sums and counts of every metric, without gradients."""

    def size(self, batch: Batch) -> int | Tensor:
        """How much of its unit the model works on in a batch, padding left out; what a rate of training counts.

        Not `loss`'s count, which is a sum of weights or of hidden tokens alone.
        """

    # A task may also have answer(model, batch) -> (scores, answers): the same scores, and what the model said of each item by name;
    # and texts, by which each validation judges what the model writes, as metrics/text.py names them.

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics that are functions of other metrics, such as the perplexity."""


def build_task(options: AnyTask, facts: Facts = NO_FACTS) -> Task:
    """The task that these options describe, for data of which these are the facts. Raises `SpecError` where they do not fit."""
    return options.build(facts)


__all__ = [
    "TASKS",
    "Batch",
    "CausalLMOptions",
    "ClassificationOptions",
    "MaskedImage",
    "MaskedImageOptions",
    "MaskedLMOptions",
    "Pictures",
    "Scores",
    "Task",
    "TaskOptions",
    "build_task",
    "inputs_of",
    "transcribe",
]
