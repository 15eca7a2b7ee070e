"""One label for each item."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NO_DATASET, DatasetInfo, Positive, Probability
from bigmodel_cli.device import constant
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.metrics import LOSS, SHARE, Measure
from bigmodel_cli.metrics.labels import f1_measure
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Scores, Task
from bigmodel_cli.tasks.shown import Learnt, Spell, of_input

INPUTS: dict[str, tuple[str, ...]] = {"image": (), "tokens": ("types",), "frames": ("lengths",)}
"""Batch keys of an item, each with the optional keys passed after it."""

Name = str | int | bool
UNEVEN = 0.8
"""Largest class as a fraction of the training items ..."""
UNEVEN_TIMES = 10
"""... or as a multiple of the smallest class, above which a warning is given."""


class ClassificationOptions(AnyTaskOptions):
    """Choose one of the data's classes; scored by accuracy and by cross-entropy in nats."""

    type: Literal["classification"] = "classification"
    output: ClassVar[str] = "labels"
    label_smoothing: Probability = Field(
        0.0, description="probability mass spread evenly over the classes"
    )
    class_weights: Literal["none", "balanced"] | dict[Name, Positive] = Field(
        "none",
        description=(
            "how much an item counts in the training loss, by its class: balanced (items / classes"
            " / items of the class: each class counts as much as another), or {name: weight}, where"
            " others weigh 1. Metrics count every item once"
        ),
    )
    mirrored: bool = Field(
        False,
        description="in validation, eval and predict the logits are the mean of those of each image"
        " and of its mirror image: a little better, at twice the time",
    )
    metric: Literal["accuracy", "macro_f1", "loss"] = Field(
        "accuracy", description="what decides which checkpoint is best"
    )

    def notes(self, info: DatasetInfo) -> list[str]:
        """The class weights; without them, a warning where the classes are uneven."""
        weights = class_weights(self, info)
        return weights_note("each class", info.classes, weights) or uneven(info)

    def beyond_the_model(self) -> str:
        return (
            "Metrics here are of the mean of the logits of each image and of its mirror image"
            " (task.mirrored); the model answers for one image."
            if self.mirrored
            else ""
        )

    def build(self, info: DatasetInfo = NO_DATASET) -> Classification:
        return Classification(self, info)


class Classification(Task):
    """batch {an input of `INPUTS`, "label": (B,)}; the model gives logits (B, classes)."""

    name = "classification"
    teachable = True
    needs = "labels"
    reads = ("label",)
    metrics: ClassVar = {
        "accuracy": SHARE,
        "loss": LOSS,
        "top5": SHARE,
        "macro_f1": SHARE,
        "error": SHARE._replace(higher_is_better=False),
    }
    derived_from = "accuracy"
    labels = True
    has_top = True
    measured = ("macro_f1",)

    def __init__(self, options: ClassificationOptions, info: DatasetInfo = NO_DATASET) -> None:
        if options.mirrored and info.classes and (info.image_shape is None or info.sound):
            raise SpecError("task.mirrored: the data has no images; leave it out")
        self.options, self.classes = options, info.classes
        self.weights = class_weights(options, info)
        self.metric = options.metric

    def forward(self, model: Any, batch: Batch, training: bool = True) -> Tensor:
        """(B, classes)   logits in fp32."""
        y: Tensor = model(*inputs_of(batch)).float()
        if not training and self.options.mirrored and "image" in batch:
            other: Tensor = model(batch["image"].flip(-1)).float()
            return (y + other) / 2
        return y

    def of_one_pass(self) -> Classification:
        own = copy.copy(self)
        own.options = self.options.model_copy(update={"mirrored": False})
        return own

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over the batch, and its size; with weights both are weighted sums.

        Their quotient is torch.nn.CrossEntropyLoss(weight=...), over any number of micro-batches.
        """
        labels, smoothing = batch["label"], self.options.label_smoothing
        weight = self._weights(outputs) if self.weights else None
        total = F.cross_entropy(outputs, labels, weight, reduction="sum", label_smoothing=smoothing)
        count = labels.new_full((), len(labels)) if weight is None else weight[labels].sum()
        return total, count

    def answered(self, outputs: Tensor, batch: Batch) -> Batch:
        """With the likeliest classes."""
        return {**batch, "label": outputs.argmax(1)}

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """The first item and its label."""
        labels = batch["label"]
        name = self.classes[int(labels[0])] if self.classes else str(int(labels[0]))
        return Learnt(f"{of_input(batch, spell)} -> {name}", len(labels))

    def target_logits(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(B, K) of the items."""
        return outputs

    def target_rows(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(B,) of the items."""
        return torch.arange(len(outputs), device=outputs.device)

    def target_weights(self, batch: Batch) -> Tensor | None:
        """(B,) of the items, by their classes."""
        labels = batch["label"]
        return self._weights(labels)[labels] if self.weights else None

    def _weights(self, beside: Tensor) -> Tensor:
        """(classes,) fp32   on the device of that tensor."""
        return constant(tuple(self.weights), beside.device, torch.float32)

    def score(self, outputs: Tensor, batch: Batch) -> tuple[Scores, Answers]:
        """Per item: right or wrong ("accuracy") and its cross-entropy ("loss").

        From twenty classes on also whether it is among the five likeliest ("top5"). The answers are
        the label, the likeliest class and its probability.
        """
        labels, logits = batch["label"], outputs
        ones = labels.new_ones(len(labels))
        scores = {
            "accuracy": ((logits.argmax(1) == labels).double(), ones),
            "loss": (F.cross_entropy(logits, labels, reduction="none").double(), ones),
        }
        if logits.shape[1] >= 20:
            top = logits.topk(5, dim=1).indices  # (B, 5)
            scores["top5"] = ((top == labels[:, None]).any(1).double(), ones)
        probability, best = logits.softmax(1).max(1)
        named = {"label": labels, "prediction": best}
        answers: Answers = {
            side: [self.classes[i] for i in n.tolist()] for side, n in named.items() if self.classes
        }
        return scores, {**answers, "probability": [round(p, 6) for p in probability.tolist()]}

    def predictions(self, outputs: Tensor, top: int) -> list[dict[str, Any]]:
        """{"label", "probability", "top": [{"label", "probability"}, ...]} of each item."""
        best = likeliest(outputs.softmax(1).cpu(), self.classes, top)
        return [{**row[0], "top": row} for row in best]

    def foremost(self, outputs: Tensor, chosen: int | None = None) -> tuple[int, str, float]:
        """The likeliest class, or the one chosen, and its probability."""
        probabilities = outputs.float().softmax(1)[0]
        best = int(probabilities.argmax()) if chosen is None else chosen
        return best, self.classes[best], float(probabilities[best])

    def measures(self, answers: Answers, texts: Sequence[str] = ()) -> dict[str, Measure]:
        """macro-F1 over the data's classes; where those are not known, over those that occur."""
        sides = [[str(name) for name in answers[side]] for side in ("label", "prediction")]
        classes = self.classes or sorted({*sides[0], *sides[1]})
        number = {name: i for i, name in enumerate(classes)}
        labels, predictions = (torch.tensor([number[name] for name in side]) for side in sides)
        return {"macro_f1": f1_measure(labels, predictions, len(classes))}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """The error rate."""
        return {"error": 1 - metrics["accuracy"]}


def uneven(info: DatasetInfo) -> list[str]:
    """A warning where one class has most training items, or many times those of another."""
    counts = info.class_counts
    if not sum(counts):
        return []
    most, least = max(counts), min(counts)
    if most < UNEVEN * sum(counts) and most < UNEVEN_TIMES * least:
        return []
    name, rare = (repr(info.classes[counts.index(n)]) for n in (most, least))
    return [
        f"warning: the classes are uneven: {name} has {most:,} of {sum(counts):,} training items"
        f" and {rare} {least:,}; a model that always says {name} gets"
        f" {100 * most / sum(counts):.1f} % right. task.class_weights: balanced lets classes count"
        " alike in training, task.metric: macro_f1 in the choice of the best"
    ]


def class_weights(options: ClassificationOptions, info: DatasetInfo) -> tuple[float, ...]:
    """The weight of each class, in the order of the logits; () where every item counts alike.

    Raises `SpecError` for an unknown class, and for "balanced" where class counts are not known.
    """
    wanted = options.class_weights
    if wanted == "none" or not info.classes:
        return ()
    if isinstance(wanted, dict):
        return tuple(by_class("class_weights", wanted, info.classes, 1.0))
    if len(info.class_counts) != len(info.classes):
        raise SpecError(
            "task.class_weights: the training items of each class are not known; give {name:"
            " weight}, or with data.type: image_shards set data.count_classes: true"
        )
    there = sum(count > 0 for count in info.class_counts)
    return tuple(sum(info.class_counts) / (there * max(1, count)) for count in info.class_counts)


def by_class(
    option: str, given: Mapping[Name, float], classes: Sequence[str], default: float
) -> list[float]:
    """The value of each class. Raises `SpecError` for a name that is not a class of the data."""
    named = {
        str(name).lower() if isinstance(name, bool) else str(name): value
        for name, value in given.items()
    }
    for name in sorted(named.keys() - set(classes)):
        shown = ", ".join(classes[:10]) + (" ..." if len(classes) > 10 else "")
        raise SpecError(
            f"task.{option}: {name!r} is not a label of the data; they are {shown}"
            f"{did_you_mean(name, classes)}"
        )
    return [float(named.get(name, default)) for name in classes]


def weights_note(of: str, classes: Sequence[str], weights: Sequence[float]) -> list[str]:
    """A message of the weights, at most ten; [] without any."""
    pairs = list(zip(classes, weights, strict=False))
    shown = ", ".join(f"{name} {weight:.3g}" for name, weight in pairs[:10])
    more = " ..." if len(pairs) > 10 else ""
    return [f"weight of {of} in the loss: {shown}{more}"] if weights else []


def likeliest(
    probabilities: Tensor, classes: Sequence[str], top: int
) -> list[list[dict[str, Any]]]:
    """(B, C) on the CPU -> the `top` likeliest of each row, {"label", "probability"}."""
    values, indices = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    return [
        [{"label": classes[i], "probability": round(v, 6)} for v, i in zip(*row, strict=True)]
        for row in zip(values.tolist(), indices.tolist(), strict=True)
    ]


def inputs_of(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The model's arguments for a batch of items.

    Raises `SpecError` for data that has none of `INPUTS`.
    """
    name = next((name for name in INPUTS if name in batch), None)
    if name is None:
        there = ", ".join(sorted(batch.keys() - {KEY}))
        raise SpecError(
            f"task.type: classification reads one of {', '.join(INPUTS)}, and the data has {there}"
        )
    return (batch[name], *(batch[beside] for beside in INPUTS[name] if beside in batch))
