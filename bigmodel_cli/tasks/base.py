"""The base classes of tasks and their options.

A new task is a file with both, and a line in the table. Training, evaluation and generation call
these methods and never look at a task's type.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from bigmodel_cli.config import NO_DATASET, DatasetInfo, Options
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.metrics import LOSS, Measure, MetricInfo
from bigmodel_cli.tasks.shown import Learnt, Pictures, SampleText, Spell

Batch = dict[str, Tensor]
Scores = dict[str, tuple[Tensor, Tensor]]
"""Metric name -> (sums (B,), counts (B,)), one pair per item of the batch."""
Answers = dict[str, list[Any]]
"""Name -> one value per item: a model's answers, and the references."""


class Search(NamedTuple):
    """How a model generates by default: the beam search, and the most tokens (`max_tokens`)."""

    beams: int = 1
    length_penalty: float = 1.0
    max_tokens: int | None = None


class AnyTaskOptions(Options):
    """Options of a task."""

    type: str = ""
    output: ClassVar[str]
    """What a model must compute, in the words of the models' `outputs`."""
    isolates: ClassVar[bool] = False
    """Whether the task can keep the documents of a window apart (data.isolate)."""

    @abstractmethod
    def build(self, info: DatasetInfo = NO_DATASET) -> Task:
        """The task, for the data that `info` describes.

        Raises `SpecError` where they do not fit.
        """

    @classmethod
    def for_predictions(cls) -> AnyTaskOptions:
        """Default options for scoring a file of predictions again, without required options."""
        return cls.model_construct()

    def head(self) -> str:
        """The type of the task that the model's head is for: another one may finetune it."""
        return self.type

    def notes(self, info: DatasetInfo) -> list[str]:
        """Messages to show before training on the data that `info` describes."""
        return []

    def beyond_the_model(self) -> str:
        """What evaluation adds to the model's own answers, as a sentence for whoever gets the model
        alone; "" for nothing.
        """
        return ""

    def sample(self) -> SampleText | None:
        """The sample text shown after training; None for none."""
        return None

    def pictures(self) -> Pictures | None:
        """The images shown after training; None for none."""
        return None

    def unlearnable(self, model: str, learners: Sequence[str]) -> str:
        """The message that a model of this type cannot learn the task; `learners` can."""
        return (
            f"task.type: {self.type} is learnt by model.type: {' or '.join(learners)}, and"
            f" model.type is {model}"
        )

    def search(self) -> Search:
        """How a model generates by default."""
        return Search()

    def example(self, model: Any, info: DatasetInfo, x: Tensor, second: int) -> tuple[Tensor, ...]:
        """A model's arguments in training, where x (B, ...) is a dummy first input.

        `second` is the length of the target of pairs.
        """
        return (x,)


class Task:
    """Turns batches into a loss and scores.

    Sums and counts are divided once, by the caller, who has all of them.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    """What the data must have, in one word."""
    reads: tuple[str, ...]
    """The batch keys that must be there."""
    unit: ClassVar[str] = "samples"
    """What `size` counts, in the plural."""
    metrics: ClassVar[Mapping[str, MetricInfo]] = {"loss": LOSS}
    """Metric name -> its description."""
    metric: str = "loss"
    """The metric that decides which checkpoint is best."""
    derived_from: ClassVar[str] = "loss"
    """The metric of `score` that `derived` is computed from."""
    measured: ClassVar[tuple[str, ...]] = ()
    """The metrics that `measures` computes from the answers of `score`."""
    labels: ClassVar[bool] = False
    """Whether it predicts something named for each item: a class, numbers."""
    has_top: ClassVar[bool] = False
    """Whether that is the likeliest of several classes."""
    chooses: ClassVar[bool] = True
    """Whether the model's outputs are logits of choices, one of which is right."""
    of_probability: ClassVar[bool] = True
    """Whether the value of `foremost` is a probability."""
    generates: ClassVar[bool] = False
    """Whether items are scored by generated text: answers are source, reference and prediction."""
    needs_reference: ClassVar[bool] = False
    """Whether the model is compared with the checkpoint that it started from."""
    reference: Any = None
    """That model, where one is needed."""
    text_metrics: Sequence[str] = ()
    """The text metrics of `eval`, as metrics/text.py names them."""
    teachable: ClassVar[bool] = False
    """Whether each target is one of several, with a probability, so that a teacher can be learnt
    from.
    """
    takes_late: ClassVar[bool] = False
    """Whether it takes logits that are not computed yet (`logits/late.py`); not inherited."""
    draws: ClassVar[bool] = False
    """Whether what is asked of a row is drawn by its key, anew in each epoch."""
    validation_text_metrics: Sequence[str] = ()
    """The text metrics of each validation; without any it generates nothing."""

    def __init_subclass__(cls) -> None:
        cls.takes_late = vars(cls).get("takes_late", False)

    def suits(self, info: DatasetInfo) -> bool:
        """Whether the data has what the task `needs`."""
        return self.needs in _contents(info)

    def check(self, model: Any, info: DatasetInfo, names: frozenset[str], source: str) -> None:
        """Raise `SpecError` where task, model (its options) and data do not fit one another.

        `info` describes the data, `names` are its batch keys, `source` is its type.
        """
        if not self.suits(info):
            other = [what for what in _contents(info) if what not in ("tokens", "images")]
            raise SpecError(
                f"task.type: {self.name} needs data with {self.needs}, and data.type: {source} has"
                f" {', '.join(other) or 'none'}{self.remedy([])}"
            )
        if "rejected" in names and "rejected" not in self.reads:
            raise SpecError(
                f"task.type: {self.name} would learn the better answers alone, and data.type:"
                f" {source} has worse ones too: task.type: dpo"
            )
        missing = [name for name in self.reads if name not in names]
        if missing:
            raise SpecError(
                f"task.type: {self.name} reads {', '.join(self.reads)}, and data.type: {source} has"
                f" {', '.join(sorted(names))}{self.remedy(missing)}"
            )

    def remedy(self, missing: list[str]) -> str:
        """What to do about data without these batch keys, as the end of a message."""
        return ""

    def forward(self, model: Any, batch: Batch, training: bool = True) -> Any:
        """The model's outputs for a batch, which `loss` and `score` take; logits for most tasks.

        Without `training` the inputs are those of evaluation, where a task has others for it.
        """
        raise NotImplementedError

    def of_one_pass(self) -> Task:
        """This task with answers of one forward pass: for whoever looks into the network."""
        return self

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss to differentiate, and the number of targets in it."""
        raise NotImplementedError

    def score(self, outputs: Any, batch: Batch) -> tuple[Scores, Answers]:
        """Per item: sums and counts of each metric that is a mean, and answers; no gradients."""
        raise NotImplementedError

    def loss_unit(self) -> object:
        """What the loss is counted in: those of two checkpoints compare where that is the same."""
        return None

    def target_logits(self, outputs: Any, batch: Batch) -> Tensor:
        """(N, K)   the logits of each target that the loss counts, where the task is
        `teachable`.
        """
        raise NotImplementedError

    def target_rows(self, outputs: Any, batch: Batch) -> Tensor:
        """(N,)   the row of the batch that each of these targets is in, ascending."""
        raise NotImplementedError

    def targets_loss(self, outputs: Any, batch: Batch) -> Callable[[slice, Tensor], Tensor]:
        """Where it `takes_late`: what makes of rows of `target_logits` their part of `loss`."""
        raise NotImplementedError

    def choices(self, info: DatasetInfo) -> int:
        """K, the choices of each of these targets, for the data that `info` describes."""
        return len(info.classes)

    def target_weights(self, batch: Batch) -> Tensor | None:
        """(N,)   how much the loss counts each of these targets; None: all alike."""
        return None

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """What is learnt of a batch, and its first item for people."""
        return Learnt("", len(next(iter(batch.values()))))

    def asked(self, batch: Batch) -> Batch:
        """What a reader makes of a user's inputs, as `forward` and `score` take it.

        Where the task draws what it hides, each row stands there several times.
        """
        return batch

    def answered(self, outputs: Any, batch: Batch) -> Batch:
        """The batch with what the model says of it as targets; a text is its own target."""
        return batch

    def size(self, batch: Batch) -> int | Tensor:
        """The batch's size in `unit`, without padding: what the training rate counts.

        Not `loss`'s count, which may be a sum of weights, or of hidden tokens alone.
        """
        return len(next(iter(batch.values())))

    def predictions(self, outputs: Any, top: int) -> list[dict[str, Any]]:
        """`predict`'s record of each item where the task `labels`; with the `top` if `has_top`."""
        raise NotImplementedError

    def foremost(self, outputs: Tensor, chosen: int | None = None) -> tuple[int, str, float]:
        """The foremost of the outputs (1, K) of one item, or the one `chosen` by its index.

        What is given back is its index, its name, and its value.
        """
        raise NotImplementedError

    def measures(self, answers: Answers, texts: Sequence[str] = ()) -> dict[str, Measure]:
        """The metrics that are not means of `score`; `texts` are the text metrics."""
        return {}

    def baselines(self, answers: Answers, texts: Sequence[str]) -> dict[str, Measure]:
        """The same metrics of a simple baseline."""
        return {}

    def tables(self, answers: Answers) -> dict[str, list[dict[str, Any]]]:
        """Tables that `eval` shows beside the metrics, by name: figures per type, label or word."""
        return {}

    def tuned(self, answers: Answers) -> dict[str, Any]:
        """Task options by path, tuned on the answers of validation data."""
        return {}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics that are functions of other metrics, such as perplexity."""
        return {}

    def info(self, metric: str) -> MetricInfo:
        """The description of a metric."""
        return self.metrics.get(metric, MetricInfo())

    def described(self) -> dict[str, Any]:
        """The deciding metric and its direction, and the metrics in percent, as plain values."""
        percent = [name for name, info in self.metrics.items() if info.percent]
        return {"name": self.metric, "higher_is_better": self.higher_is_better, "percent": percent}

    @property
    def higher_is_better(self) -> bool:
        """Whether the deciding metric is better when higher."""
        return self.info(self.metric).higher_is_better


def _contents(info: DatasetInfo) -> list[str]:
    """What the data has, in the words of `Task.needs`."""
    there = {
        "labels": info.classes and not info.label_sets,
        "sets of labels": info.label_sets,
        "numbers": info.targets,
        "tokens": info.vocab_size,
        "images": info.image_shape,
    }
    return [what for what, has in there.items() if has]
