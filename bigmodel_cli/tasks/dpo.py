"""Learning from preferences: of two answers to a question, one is better."""

from __future__ import annotations

import contextlib
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NO_DATASET, PADDING, DatasetInfo, NonNegative, Positive
from bigmodel_cli.draw import doubled
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.logits import whole, wide
from bigmodel_cli.metrics import LOSS, SHARE, MetricInfo
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Scores, Task
from bigmodel_cli.tasks.shown import Learnt, Spell, marked, real
from bigmodel_cli.tasks.tokens import shifted

ANY = (-math.inf, math.inf)


class DPOOptions(AnyTaskOptions):
    """Direct preference optimization (Rafailov et al. 2023): the better answer becomes likelier
    than the worse one, measured against the initial checkpoint.
    """

    type: Literal["dpo"] = "dpo"
    output: ClassVar[str] = "next_tokens"
    beta: Positive = Field(
        0.1, description="how much a change of the model counts; smaller lets it move further away"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="share of pairs that may be the wrong way round (Mitchell 2023)"
    )
    nll: NonNegative = Field(
        0.0, description="weight of the better answer's loss per token beside it (Pang et al. 2024)"
    )

    def head(self) -> str:
        return "causal_lm"

    def build(self, info: DatasetInfo = NO_DATASET) -> DPO:
        return DPO(self)


class DPO(Task):
    """batch {"tokens", "loss_mask", "rejected", "rejected_mask": (B, T + 1)}.

    The tokens of the question with the better and with the worse answer, whose own tokens the masks
    mark. loss = -log sigmoid(beta ((log p(c) - log p(r)) - (log q(c) - log q(r)))), with q the
    reference model.
    """

    name = "dpo"
    takes_late = True
    needs = "tokens"
    reads = ("tokens", "rejected")
    unit = "tokens"
    metrics: ClassVar = {"loss": LOSS, "accuracy": SHARE, "margin": MetricInfo(limits=ANY)}
    needs_reference = True

    def __init__(self, options: DPOOptions) -> None:
        self.options = options

    def remedy(self, missing: list[str]) -> str:
        """Name the data that has pairs of answers."""
        return "; use data.type: preferences" if "rejected" in missing else ""

    def forward(self, model: Any, batch: Batch, training: bool = True) -> tuple[Tensor, Tensor]:
        """(B, 2) log-probabilities of the better and the worse answer, of the model and of the
        reference.
        """
        assert self.reference is not None, "the reference was not set"
        # sums over an answer's tokens are compared: in training both are rounded alike
        with contextlib.nullcontext() if training else wide():
            own = _log_probabilities(model, batch)
            with torch.no_grad():
                return own, _log_probabilities(self.reference.eval(), batch)

    def margins(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
        """(B,)   beta times how much more than the reference the model prefers the better one."""
        gains = outputs[0] - outputs[1]
        return self.options.beta * (gains[:, 0] - gains[:, 1])

    def losses(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """(B,)   the loss of each pair."""
        margins, smoothing = self.margins(outputs), self.options.label_smoothing
        loss = -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins)
        if self.options.nll:
            count = _targets(batch, *ANSWERS[0]).ne(PADDING).sum(1)
            loss = loss - self.options.nll * outputs[0][:, 0] / count
        return loss

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed over pairs, and their number."""
        losses = self.losses(outputs, batch)
        return losses.sum(), torch.full((), len(losses), device=losses.device)

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """The first pair, both answers marked; their tokens are counted."""
        texts, count, of = [], 0, 0
        for name, mask in ANSWERS:
            tokens, targets = real(batch[name][0]), _targets(batch, name, mask)
            learnt = [False, *(targets[0] != PADDING).tolist()][: len(tokens)]
            texts.append(marked(tokens, learnt, lambda part: spell("tokens", part)))
            count += int((targets != PADDING).sum())
            of += int((shifted(batch[name])[1] != PADDING).sum())
        return Learnt("\n".join(texts), count, of)

    def size(self, batch: Batch) -> Tensor:
        """The tokens of both answers and their questions."""
        return torch.stack([(batch[name] != PADDING).sum() for name in self.reads]).sum()

    def score(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> tuple[Scores, Answers]:
        """Per pair: its loss, whether the margin is positive ("accuracy"; half where it is 0), and
        the margin.
        """
        margins = self.margins(outputs).double()
        values = {
            "loss": self.losses(outputs, batch).double(),
            "accuracy": (margins.sign() + 1) / 2,
            "margin": margins,
        }
        ones = torch.ones_like(margins, dtype=torch.int64)
        return {name: (value, ones) for name, value in values.items()}, {}


ANSWERS = (("tokens", "loss_mask"), ("rejected", "rejected_mask"))
"""Batch keys of the better and the worse answer: tokens, and which of them are the answer's."""


def _targets(batch: Batch, tokens: str, mask: str) -> Tensor:
    """(B, T)   the next tokens of the answer, -1 elsewhere."""
    targets = shifted(batch[tokens])[1]
    return targets if mask not in batch else targets.masked_fill(~batch[mask][:, 1:], PADDING)


def _log_probabilities(model: Any, batch: Batch) -> Tensor:
    """(B, 2)   of both answers, summed over their tokens.

    Both pass through the model at once, so that what its parts count (the load of experts) is of
    both.
    """
    tokens = torch.nn.utils.rnn.pad_sequence(
        [row for name, _ in ANSWERS for row in batch[name]], batch_first=True, padding_value=PADDING
    )  # (2 B, T + 1)
    with doubled():
        logits = model(shifted(tokens)[0])
    found = []
    for own, (name, mask) in zip(logits.chunk(2), ANSWERS, strict=True):
        targets = _targets(batch, name, mask)  # (B, T')
        found.append(-_nats(own[:, : targets.shape[1]], targets).sum(1))
    return torch.stack(found, 1)


def _nats(logits: Any, targets: Tensor) -> Tensor:
    """logits (B, T, V), late or not, targets (B, T) -> (B, T)   0 where a target is -1.

    Late logits are computed where there are targets alone: of the questions there are none.
    """
    at = targets != PADDING
    own, wanted = whole(logits[at]), targets[at]
    kind = torch.promote_types(own.dtype, torch.float32)
    nats = F.cross_entropy(own.to(kind), wanted, reduction="none")
    return nats.new_zeros(targets.shape).masked_scatter(at, nats)
