"""What tasks have in common that find tokens of a vocabulary."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from bigmodel_cli.config import PADDING
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.metrics import LOSS, SHARE
from bigmodel_cli.tasks.base import Answers, Batch, Scores, Task
from bigmodel_cli.tasks.loss import cross_entropy, judged


class TokenTask(Task):
    """The outputs are logits (B, T, V) of the tokens of a sequence (B, T + 1) from the second on, -1 where a row is over."""

    needs = "tokens"
    unit = "tokens"
    metrics: ClassVar = {"loss": LOSS, "accuracy": SHARE}
    sequence: ClassVar[str]
    """The sequence's name in a batch."""
    label_smoothing: float = 0.0

    def shift(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs (B, T) and targets (B, T): the only place where the sequence moves by one."""
        tokens = batch[self.sequence]
        return tokens[:, :-1], tokens[:, 1:]

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over all targets, and how many there are."""
        targets = self.shift(batch)[1]
        return cross_entropy(outputs, targets, self.label_smoothing), (targets != PADDING).sum()

    def size(self, batch: Batch) -> Tensor:
        """The targets."""
        return (self.shift(batch)[1] != PADDING).sum()

    def score(self, outputs: Any, batch: Batch) -> tuple[Scores, Answers]:
        """Per row: nats and targets ("loss"), and right first guesses ("accuracy"), without label smoothing."""
        targets = self.shift(batch)[1]
        nats, right = judged(outputs, targets)  # (B, T)
        counts = (targets != PADDING).sum(1)
        return {"loss": (nats.sum(1), counts), "accuracy": (right.sum(1).double(), counts)}, {}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Perplexity per target."""
        return {"perplexity": math.exp(min(metrics["loss"], 700.0))}
