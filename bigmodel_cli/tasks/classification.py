"""One label for each item."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Options, Probability
from bigmodel_cli.lazy import F, Module, Tensor


class ClassificationOptions(Options):
    """Choose one of the data's classes; scored by accuracy and by cross-entropy in nats."""

    type: Literal["classification"] = "classification"
    label_smoothing: Probability = Field(0.0, description="probability mass spread evenly over the classes")

    def build(self) -> Classification:
        """The task."""
        return Classification(self)


class Classification:
    """batch {"image": (B, C, H, W), "label": (B,)}; the model maps images to logits (B, classes).

    In place of images, {"frames": (B, T, width), "lengths": (B,)} of sound.
    """

    name = "classification"
    metric = "accuracy"
    higher_is_better = True
    needs = "classes"
    reads: tuple[str, ...] = ("label",)

    def __init__(self, options: ClassificationOptions) -> None:
        self.options = options

    def logits(self, model: Module, batch: dict[str, Tensor]) -> Tensor:
        """(B, classes) in fp32, of what stands in the batch beside the labels."""
        if "frames" in batch:
            logits: Tensor = model(batch["frames"], lengths=batch["lengths"])
        else:
            logits = model(batch["image"])
        return logits.float()

    def loss(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over the batch, and its size."""
        labels = batch["label"]
        logits = self.logits(model, batch)
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.options.label_smoothing)
        return total, labels.new_full((), len(labels))

    def score(self, model: Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per item: right or wrong ("accuracy", and "top5" from twenty classes on) and its cross-entropy ("loss")."""
        labels = batch["label"]
        logits = self.logits(model, batch)
        ones = labels.new_ones(len(labels))
        scores = {
            "accuracy": ((logits.argmax(1) == labels).double(), ones),
            "loss": (F.cross_entropy(logits, labels, reduction="none").double(), ones),
        }
        if logits.shape[1] >= 20:
            top = logits.topk(5, dim=1).indices  # (B, 5)
            scores["top5"] = ((top == labels[:, None]).any(1).double(), ones)
        return scores

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """The error rate."""
        return {"error": 1 - metrics["accuracy"]}
