"""Any number of labels for each item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NO_DATASET, DatasetInfo, Fraction, Positive
from bigmodel_cli.device import constant
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.metrics import LOSS, SHARE, Measure
from bigmodel_cli.metrics.sets import best_threshold, f1_of_sets, mean_average_precision
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Scores, Task
from bigmodel_cli.tasks.classification import Name, by_class, inputs_of, likeliest, weights_note
from bigmodel_cli.tasks.shown import Learnt, Spell, of_input

HALF = 0.5


class MultilabelOptions(AnyTaskOptions):
    """Predict an item's set of labels; scored by mAP, F1 of the sets, and binary cross-entropy."""

    type: Literal["multilabel"] = "multilabel"
    output: ClassVar[str] = "labels"
    thresholds: Fraction | dict[Name, Fraction] = Field(
        HALF,
        description=(
            "the probability from which on an item has a label, of all or {name: threshold}, where"
            " others have 0.5; `eval --split val` says which are best"
        ),
    )
    pos_weight: Literal["none", "balanced"] | dict[Name, Positive] = Field(
        "none",
        description=(
            "how much an item with a label counts in the loss, where one without counts 1: balanced"
            " (items without / items with), or {name: weight}, where others weigh 1"
        ),
    )
    metric: Literal["map", "micro_f1", "macro_f1", "exact", "loss"] = Field(
        "map", description="what decides which checkpoint is best"
    )

    def notes(self, info: DatasetInfo) -> list[str]:
        """The weights of the labels."""
        return weights_note("items with each label", info.classes, positive_weights(self, info))

    def build(self, info: DatasetInfo = NO_DATASET) -> Multilabel:
        return Multilabel(self, info)


class Multilabel(Task):
    """batch {an input, "labels": (B, C) bool}; the model gives logits (B, C), one per decision."""

    name = "multilabel"
    chooses = False
    needs = "sets of labels"
    reads = ("labels",)
    metrics: ClassVar = {
        "map": SHARE,
        "micro_f1": SHARE,
        "macro_f1": SHARE,
        "exact": SHARE,
        "loss": LOSS,
    }
    measured = ("map", "micro_f1", "macro_f1")
    labels = True
    has_top = True

    def __init__(self, options: MultilabelOptions, info: DatasetInfo = NO_DATASET) -> None:
        self.options, self.classes, self.metric = options, info.classes, options.metric
        given = options.thresholds
        self.thresholds = (
            by_class("thresholds", given, info.classes, HALF)
            if isinstance(given, dict)
            else [given] * len(info.classes)
        )
        self.weights = positive_weights(options, info)

    def remedy(self, missing: list[str]) -> str:
        """Suggest data.label_separator."""
        return "; say what stands between an item's labels: data.label_separator"

    def forward(self, model: Any, batch: Batch, training: bool = True) -> Tensor:
        """(B, C)   logits in fp32."""
        y: Tensor = model(*inputs_of(batch)).float()
        return y

    def answered(self, outputs: Tensor, batch: Batch) -> Batch:
        """With the labels from their thresholds on."""
        probabilities = outputs.double().sigmoid()
        return {**batch, "labels": probabilities >= probabilities.new_tensor(self.thresholds)}

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """The first item and its labels."""
        labels = batch["labels"]
        names = ", ".join(self.names(labels[:1])[0]) or "no label"
        return Learnt(f"{of_input(batch, spell)} -> {names}", labels.numel())

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed binary cross-entropy over items and labels, and their number."""
        weight = (
            constant(tuple(self.weights), outputs.device, outputs.dtype) if self.weights else None
        )
        total = F.binary_cross_entropy_with_logits(
            outputs, batch["labels"].to(outputs.dtype), pos_weight=weight, reduction="sum"
        )
        return total, torch.full((), outputs.numel(), device=outputs.device)

    def score(self, outputs: Tensor, batch: Batch) -> tuple[Scores, Answers]:
        """Per item: whether its set is right ("exact"), and its mean cross-entropy ("loss").

        The answers are its labels, the predicted ones, and the probability of each.
        """
        truth, probabilities = batch["labels"], outputs.double().sigmoid()
        said = probabilities >= probabilities.new_tensor(self.thresholds)
        nats = F.binary_cross_entropy_with_logits(
            outputs, truth.to(outputs.dtype), reduction="none"
        )
        ones = torch.ones(len(truth), dtype=torch.int64, device=truth.device)
        scores = {
            "exact": ((said == truth).all(1).double(), ones),
            "loss": (nats.double().mean(1), ones),
        }
        values = [dict(zip(self.classes, row, strict=True)) for row in probabilities.tolist()]
        return scores, {
            "reference": self.names(truth),
            "prediction": self.names(said),
            "probabilities": values,
        }

    def names(self, held: Tensor) -> list[list[str]]:
        """(B, C) bool -> the labels of each item."""
        return [
            [name for name, has in zip(self.classes, row, strict=True) if has]
            for row in held.tolist()
        ]

    def predictions(self, outputs: Tensor, top: int) -> list[dict[str, Any]]:
        """{"labels", "top": [{"label", "probability"}, ...]} of each item."""
        probabilities = outputs.double().sigmoid().cpu()
        sets = self.names(probabilities >= probabilities.new_tensor(self.thresholds))
        best = likeliest(probabilities, self.classes, top)
        return [{"labels": own, "top": row} for own, row in zip(sets, best, strict=True)]

    def foremost(self, outputs: Tensor, chosen: int | None = None) -> tuple[int, str, float]:
        """The likeliest label, or the one chosen, and its probability."""
        probabilities = outputs.float().sigmoid()[0]
        best = int(probabilities.argmax()) if chosen is None else chosen
        return best, self.classes[best], float(probabilities[best])

    def measures(self, answers: Answers, texts: Sequence[str] = ()) -> dict[str, Measure]:
        """mAP, micro-F1 and macro-F1."""
        scores, truth, said = _matrices(answers)
        return {"map": mean_average_precision(scores, truth), **f1_of_sets(truth, said)}

    def tuned(self, answers: Answers) -> dict[str, Any]:
        """Each label's threshold of the highest F1; one without positives keeps its own."""
        scores, truth, _ = _matrices(answers)
        found = [best_threshold(scores[:, c], truth[:, c]) for c in range(len(self.classes))]
        three = zip(self.classes, found, self.thresholds, strict=True)
        return {
            "task.thresholds": {name: old if best is None else best for name, best, old in three}
        }


def _matrices(answers: Answers) -> tuple[Tensor, Tensor, Tensor]:
    """(N, C) probabilities, true labels, and predicted labels."""
    classes = [*answers["probabilities"][0]]
    scores = torch.tensor(
        [[row[n] for n in classes] for row in answers["probabilities"]], dtype=torch.float64
    )
    truth, said = (
        torch.tensor([[name in names for name in classes] for names in map(set, answers[side])])
        for side in ("reference", "prediction")
    )
    return scores, truth, said


def positive_weights(options: MultilabelOptions, info: DatasetInfo) -> tuple[float, ...]:
    """The weight of positives of each label; () where all are 1.

    A label that no training item has, or every one, has weight 1.
    """
    wanted = options.pos_weight
    if wanted == "none" or not info.classes:
        return ()
    if isinstance(wanted, dict):
        return tuple(by_class("pos_weight", wanted, info.classes, 1.0))
    if len(info.class_counts) != len(info.classes):
        raise SpecError(
            "task.pos_weight: the training items of each label are not known; give {name: weight}"
        )
    return tuple((info.items - n) / n if 0 < n < info.items else 1.0 for n in info.class_counts)
