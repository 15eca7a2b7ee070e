"""What every task answers: a new task is a file with its options and its class, and a line in the
table.

Who trains, evaluates or writes asks these methods and never looks at what a task is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from bigmodel_cli.config import NO_DATASET, DatasetInfo, Options
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.metrics import LOSS, Measure, MetricInfo
from bigmodel_cli.tasks.shown import Pictures, SampleText

Batch = dict[str, Tensor]
Scores = dict[str, tuple[Tensor, Tensor]]
"""Metric name -> (sums (B,), counts (B,)), one pair per item of the batch."""
Answers = dict[str, list[Any]]
"""What a model said of each item, by name, beside what it should have said."""


class Search(NamedTuple):
    """How a model writes where the command line does not say: by a search for a text, with
    `max_tokens` at most.
    """

    beams: int = 1
    length_penalty: float = 1.0
    max_tokens: int | None = None


class AnyTaskOptions(Options):
    """Options of a task."""

    type: str = ""
    output: ClassVar[str]
    """What a model must compute, as the models' options name it in their `outputs`."""
    isolates: ClassVar[bool] = False
    """Whether the task keeps the documents of a window apart (data.isolate)."""

    @abstractmethod
    def build(self, info: DatasetInfo = NO_DATASET) -> Task:
        """The task, for the data that `info` describes.

        Raises `SpecError` where they do not fit.
        """

    @classmethod
    def for_predictions(cls) -> AnyTaskOptions:
        """Options by default, for a task that scores a file of samples again: options that must be
        given are left out.
        """
        return cls.model_construct()

    def notes(self, info: DatasetInfo) -> list[str]:
        """What is to be said before training on the data that `info` describes."""
        return []

    def sample(self) -> SampleText | None:
        """The text that a finished training shows; None where the task is not to write any."""
        return None

    def pictures(self) -> Pictures | None:
        """The images that a finished training shows; None where there are none."""
        return None

    def unlearnable(self, model: str, learners: Sequence[str]) -> str:
        """Why a model of this type cannot learn the task, as a message; `learners` are the types
        that can.
        """
        return (
            f"task.type: {self.type} is learnt by model.type: {' or '.join(learners)}, and"
            f" model.type is {model}"
        )

    def search(self) -> Search:
        """How a model writes."""
        return Search()

    def example(self, model: Any, info: DatasetInfo, x: Tensor, second: int) -> tuple[Tensor, ...]:
        """What a model with these options is called with in training, where x (B, ...) is its first
        input, of no content.

        `second` is the length of the other side of pairs.
        """
        return (x,)


class Task:
    """Turns batches into a loss and scores.

    Sums and counts are divided once, by whoever has all of them.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    """What the data must have, in a word."""
    reads: tuple[str, ...]
    """The names in a batch that must be there."""
    unit: ClassVar[str] = "samples"
    """What `size` counts, in the plural."""
    metrics: ClassVar[Mapping[str, MetricInfo]] = {"loss": LOSS}
    """What is to be known of the metrics."""
    metric: str = "loss"
    """The metric that decides which checkpoint is best."""
    derived_from: ClassVar[str] = "loss"
    """The metric of `score` whose functions are `derived`."""
    measured: ClassVar[tuple[str, ...]] = ()
    """The metrics that `measures` finds in the answers of `score`."""
    labels: ClassVar[bool] = False
    """Whether it says something of each item that has a name: a class, numbers."""
    has_top: ClassVar[bool] = False
    """Whether that is the likeliest of several."""
    of_probability: ClassVar[bool] = True
    """Whether what `foremost` says is a probability."""
    generates: ClassVar[bool] = False
    """Whether items are judged by what the model writes: its answers are then source, reference and
    prediction.
    """
    text_metrics: Sequence[str] = ()
    """What `eval` judges written texts by, as metrics/text.py names them."""
    validation_text_metrics: Sequence[str] = ()
    """What each validation does; where there are none it lets the model write nothing."""

    def suits(self, info: DatasetInfo) -> bool:
        """Whether the data has what the task `needs`."""
        return self.needs in _contents(info)

    def check(self, model: Any, info: DatasetInfo, names: frozenset[str], source: str) -> None:
        """Raise `SpecError` where task, model (its options) and data do not fit one another.

        The data has this DatasetInfo and `names` in a batch, and is of the type `source`.
        """
        if not self.suits(info):
            other = [what for what in _contents(info) if what not in ("tokens", "images")]
            raise SpecError(
                f"task.type: {self.name} needs data with {self.needs}, and data.type: {source} has"
                f" {', '.join(other) or 'none'}{self.remedy([])}"
            )
        missing = [name for name in self.reads if name not in names]
        if missing:
            raise SpecError(
                f"task.type: {self.name} reads {', '.join(self.reads)}, and data.type: {source} has"
                f" {', '.join(sorted(names))}{self.remedy(missing)}"
            )

    def remedy(self, missing: list[str]) -> str:
        """What to do about data without these names in a batch, as the end of a message."""
        return ""

    def forward(self, model: Any, batch: Batch, training: bool = True) -> Any:
        """The model called on a batch: what `loss` and `score` take, logits for most tasks.

        Where a task shows a model something else when it is judged, that is what it does without
        `training`.
        """
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss to differentiate, and the number of targets in it."""
        raise NotImplementedError

    def score(self, outputs: Any, batch: Batch) -> tuple[Scores, Answers]:
        """Sums and counts of every metric that is a mean, and what the model said, of each item.

        Without gradients.
        """
        raise NotImplementedError

    def size(self, batch: Batch) -> int | Tensor:
        """How much of its unit the model works on in a batch, padding left out; what a rate of
        training counts.

        Not `loss`'s count, which is a sum of weights or of hidden tokens alone.
        """
        return len(next(iter(batch.values())))

    def predictions(self, outputs: Any, top: int) -> list[dict[str, Any]]:
        """What `predict` tells of each item, where the task `labels`; of the `top` likeliest where
        it `has_top`.
        """
        raise NotImplementedError

    def foremost(self, outputs: Tensor) -> tuple[int, str, float]:
        """Of the outputs (1, K) of one item: the number of the one to look at, its name, and what
        it says.
        """
        raise NotImplementedError

    def measures(self, answers: Answers, texts: Sequence[str] = ()) -> dict[str, Measure]:
        """The metrics that are not means of `score`; `texts` are what written texts are judged by."""
        return {}

    def baselines(self, answers: Answers, texts: Sequence[str]) -> dict[str, Measure]:
        """The same metrics of something simple that a model must be better than."""
        return {}

    def tables(self, answers: Answers) -> dict[str, list[dict[str, Any]]]:
        """What `eval` shows beside the metrics, by name, as rows of the same columns: how it is
        with each type, label, word.
        """
        return {}

    def tuned(self, answers: Answers) -> dict[str, Any]:
        """Options of the task, by their paths, that a trained model is best used with, found on the
        answers of validation data.
        """
        return {}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics that are functions of other metrics, such as the perplexity."""
        return {}

    def info(self, metric: str) -> MetricInfo:
        """What is to be known of a metric of this name."""
        return self.metrics.get(metric, MetricInfo())

    def described(self) -> dict[str, Any]:
        """The metric that decides, as plain values: its name and which way is better; and all in
        percent.
        """
        percent = [name for name, info in self.metrics.items() if info.percent]
        return {"name": self.metric, "higher_is_better": self.higher_is_better, "percent": percent}

    @property
    def higher_is_better(self) -> bool:
        """Of the metric that decides."""
        return self.info(self.metric).higher_is_better


def _contents(info: DatasetInfo) -> list[str]:
    """What data as `info` describes it has, in the words of `Task.needs`."""
    there = {
        "labels": info.classes and not info.label_sets,
        "sets of labels": info.label_sets,
        "numbers": info.targets,
        "tokens": info.vocab_size,
        "images": info.image_shape,
    }
    return [what for what, has in there.items() if has]
