"""Writing one text after reading another: translation, summarization."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bigmodel_cli.config import NO_FACTS, PADDING, Beams, Count, Facts, NonNegative, Probability
from bigmodel_cli.lazy import Module, Tensor
from bigmodel_cli.metrics import LOWER_IS_BETTER
from bigmodel_cli.metrics.text import group_of
from bigmodel_cli.tasks.base import AnyTaskOptions
from bigmodel_cli.tasks.loss import cross_entropy, judged


class Seq2SeqTaskOptions(AnyTaskOptions):
    """Write a target after reading a source (Sutskever et al. 2014); scored by cross-entropy in nats per target token."""

    type: Literal["seq2seq"] = "seq2seq"
    label_smoothing: Probability = Field(0.0, description="probability mass spread evenly over the vocabulary")
    metrics: list[Literal["bleu", "chrf", "rouge", "wer", "cer"]] = Field(
        ["bleu", "chrf"], description="how `eval` judges what the model writes, by sacrebleu, rouge-score and jiwer"
    )
    baseline: Literal["none", "lead"] = Field(
        "none", description="lead: judge the source's first words too, as many as a reference has on average"
    )
    metric: Literal["loss", "accuracy", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "wer", "cer"] = Field(
        "loss",
        description="what decides which checkpoint is best, and when patience ends; for what is judged by text, each validation "
        "lets the model write",
    )
    beams: Beams = Field(5, description="hypotheses that the search keeps when the model writes; 1 is greedy")
    max_tokens: Count | None = Field(
        None, description="longest text that the model writes, in tokens with the end; left out: what its context holds"
    )
    length_penalty: NonNegative = Field(1.0, description="how far a longer text is preferred (Wu et al. 2016); 0: not")

    def build(self, facts: Facts = NO_FACTS) -> Seq2SeqTask:
        """The task."""
        return Seq2SeqTask(self)


class Seq2SeqTask:
    """batch {"source": (B, S), "target": (B, T + 1)}; the model maps source and target (B, T) to logits (B, T, V)."""

    name = "seq2seq"
    derived_from = "loss"
    needs = "vocab_size"
    unit = "tokens"
    reads: tuple[str, ...] = ("source", "target")

    def __init__(self, options: Seq2SeqTaskOptions) -> None:
        self.options = options
        self.metric: str = options.metric
        self.texts = group_of(options.metric)
        self.higher_is_better = options.metric not in LOWER_IS_BETTER

    def loss(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over all target tokens, and how many there are."""
        target = batch["target"]
        total = cross_entropy(model(batch["source"], target[:, :-1]), target[:, 1:], self.options.label_smoothing)
        return total, (target[:, 1:] != PADDING).sum()

    def size(self, batch: dict[str, Tensor]) -> Tensor:
        """The target tokens."""
        return (batch["target"][:, 1:] != PADDING).sum()

    def score(self, model: Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per pair: nats and target tokens ("loss"), and right first guesses ("accuracy"), without label smoothing."""
        target = batch["target"]
        wanted = target[:, 1:]
        nats, right = judged(model(batch["source"], target[:, :-1]), wanted)  # (B, T)
        counts = (wanted != PADDING).sum(1)
        return {"loss": (nats.sum(1), counts), "accuracy": (right.sum(1).double(), counts)}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Perplexity per target token."""
        return {"perplexity": math.exp(min(metrics["loss"], 700.0))}
