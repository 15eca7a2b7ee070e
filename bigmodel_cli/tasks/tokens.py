"""The base of tasks that predict tokens of a vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from bigmodel_cli.config import PADDING, DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.logits import cross_entropy, token_nll
from bigmodel_cli.metrics import LOSS, SHARE
from bigmodel_cli.parts.row_share import share_of_row
from bigmodel_cli.tasks.base import Answers, Batch, Scores, Task
from bigmodel_cli.tasks.shown import Learnt, Spell, in_one_line, marked, real, shortened


class TokenTask(Task):
    """Outputs are logits (B, T, V) of the tokens of a sequence (B, T + 1) from the second on.

    The sequence is padded with -1. Where the batch has "loss_mask" (B, T + 1) bool, tokens where it
    is False are inputs but not targets.
    """

    needs = "tokens"
    teachable = True
    unit = "tokens"
    metrics: ClassVar = {"loss": LOSS, "accuracy": SHARE, "exact": SHARE, "perplexity": LOSS}
    sequence: ClassVar[str]
    """The sequence's batch key."""
    label_smoothing: float = 0.0

    def check(self, model: Any, info: DatasetInfo, names: frozenset[str], source: str) -> None:
        """Also refuse data with a tag for each word, since its models predict tags."""
        if info.tagged:
            raise SpecError(
                f"task.type: {self.name} learns texts, and data.type: {source} has tags: task.type:"
                " tagging"
            )
        super().check(model, info, names, source)

    def shift(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Inputs (B, T) and targets (B, T), where this sequence is shifted."""
        inputs, targets = shifted(batch[self.sequence])
        mask = batch.get("loss_mask")
        return inputs, targets if mask is None else targets.masked_fill(~mask[:, 1:], PADDING)

    def own_targets(self, batch: Batch) -> Tensor:
        """(B, T) targets; where rows are divided, those of the positions that outputs are of."""
        targets = self.shift(batch)[1]
        share = share_of_row(targets.shape[1])
        return targets if share is None else share.tokens(targets)

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over all targets, and their number."""
        targets = self.own_targets(batch)
        return cross_entropy(outputs, targets, self.label_smoothing), (targets != PADDING).sum()

    def target_logits(self, outputs: Any, batch: Batch) -> Tensor:
        """(N, V) of the tokens that are targets."""
        logits: Tensor = outputs[self.own_targets(batch) != PADDING]
        return logits

    def targets_loss(self, outputs: Any, batch: Batch) -> Callable[[slice, Tensor], Tensor]:
        """Their cross-entropy."""
        targets = self.own_targets(batch)
        wanted, smoothing = targets[targets != PADDING], self.label_smoothing
        return lambda rows, logits: cross_entropy(logits, wanted[rows], smoothing)

    def choices(self, info: DatasetInfo) -> int:
        """The tokens of the vocabulary."""
        return info.vocab_size or 0

    def target_rows(self, outputs: Any, batch: Batch) -> Tensor:
        """(N,) of the tokens that are targets."""
        return (self.own_targets(batch) != PADDING).nonzero()[:, 0]

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """The first row with its targets marked, after its source, if any."""
        targets = shifted(batch[self.sequence])[1]
        learnt = self.shift(batch)[1] != PADDING
        tokens = real(batch[self.sequence][0])
        own = [False, *learnt[0].tolist()][: len(tokens)]
        text = marked(tokens, own, lambda part: spell(self.sequence, part))
        if "loss_mask" not in batch:
            text = in_one_line(text)
        if "source" in batch:
            source = shortened(spell("source", real(batch["source"][0])))
            text = f"{in_one_line(source)} -> {text}"
        return Learnt(text, int(learnt.sum()), int((targets != PADDING).sum()))

    def size(self, batch: Batch) -> Tensor:
        """The tokens after the first, targets or not."""
        return (batch[self.sequence][:, 1:] != PADDING).sum()

    def score(self, outputs: Any, batch: Batch) -> tuple[Scores, Answers]:
        """Per row, without label smoothing: nats and targets ("loss"), correct argmax ("accuracy").

        Where the batch marks the answer's tokens: whether all of them are right ("exact").
        """
        targets = self.shift(batch)[1]
        nats, right = token_nll(outputs, targets)  # (B, T)
        counts = (targets != PADDING).sum(1)
        scores = {"loss": (nats.sum(1), counts), "accuracy": (right.sum(1).double(), counts)}
        if "loss_mask" in batch:
            scores["exact"] = ((right.sum(1) == counts).double(), torch.ones_like(counts))
        return scores, {}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Perplexity per target."""
        return {"perplexity": math.exp(min(metrics["loss"], 700.0))}


def shifted(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T + 1) -> inputs (B, T), targets (B, T): the only place where a sequence is shifted.

    A row's last token is no input, in a longer batch either: it foretells nothing, and experts
    would count it or not by the length of other rows.
    """
    targets = tokens[:, 1:]
    return tokens[:, :-1].masked_fill(targets == PADDING, PADDING), targets


def row_sums(values: Tensor, at: Tensor) -> Tensor:
    """(N,), (B, T) bool -> (B,) float64   sums by row of the values that stand `at` N places."""
    placed = torch.zeros(at.shape, dtype=torch.float64, device=at.device)
    placed[at] = values.double()
    return placed.sum(1)
