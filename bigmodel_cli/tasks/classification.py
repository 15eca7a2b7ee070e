"""One label for each item."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bigmodel_cli.config import Options, Probability
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Module, Tensor
from bigmodel_cli.metrics import LOWER_IS_BETTER

INPUTS: dict[str, tuple[str, ...]] = {"image": (), "tokens": ("types",), "frames": ("lengths",)}
"""What an item may be, by its name in a batch, and what may stand beside it: what the model is called with, in this order."""


class ClassificationOptions(Options):
    """Choose one of the data's classes; scored by accuracy and by cross-entropy in nats."""

    type: Literal["classification"] = "classification"
    label_smoothing: Probability = Field(0.0, description="probability mass spread evenly over the classes")
    metric: Literal["accuracy", "macro_f1", "loss"] = Field(
        "accuracy", description="what decides which checkpoint is best"
    )

    def build(self) -> Classification:
        """The task."""
        return Classification(self)


class Classification:
    """batch {an input of `INPUTS`, "label": (B,)}; the model maps the input to logits (B, classes)."""

    name = "classification"
    derived_from = "accuracy"
    needs = "classes"
    reads: tuple[str, ...] = ("label",)

    def __init__(self, options: ClassificationOptions) -> None:
        self.options = options
        self.metric: str = options.metric
        self.higher_is_better = options.metric not in LOWER_IS_BETTER

    def loss(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over the batch, and its size."""
        labels = batch["label"]
        logits = model(*inputs_of(batch)).float()
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.options.label_smoothing)
        return total, labels.new_full((), len(labels))

    def score(self, model: Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per item: right or wrong ("accuracy", and "top5" from twenty classes on) and its cross-entropy ("loss")."""
        return self.answer(model, batch)[0]

    def answer(
        self, model: Module, batch: dict[str, Tensor]
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, list[Any]]]:
        """The same, and for each item its label, the likeliest class and that one's probability."""
        labels = batch["label"]
        logits = model(*inputs_of(batch)).float()
        ones = labels.new_ones(len(labels))
        scores = {
            "accuracy": ((logits.argmax(1) == labels).double(), ones),
            "loss": (F.cross_entropy(logits, labels, reduction="none").double(), ones),
        }
        if logits.shape[1] >= 20:
            top = logits.topk(5, dim=1).indices  # (B, 5)
            scores["top5"] = ((top == labels[:, None]).any(1).double(), ones)
        probability, best = logits.softmax(1).max(1)
        said = {"label": labels, "prediction": best, "probability": probability}
        return scores, {name: values.tolist() for name, values in said.items()}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """The error rate."""
        return {"error": 1 - metrics["accuracy"]}


def inputs_of(batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What a model that labels items is called with. Raises `SpecError` for data that has none of `INPUTS`."""
    name = next((name for name in INPUTS if name in batch), None)
    if name is None:
        there = ", ".join(sorted(batch.keys() - {KEY}))
        raise SpecError(f"task.type: classification reads one of {', '.join(INPUTS)}, and the data has {there}")
    return (batch[name], *(batch[beside] for beside in INPUTS[name] if beside in batch))
