"""Next-token prediction."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from bigmodel_cli.config import NO_FACTS, PADDING, Facts, NonNegative, Probability
from bigmodel_cli.lazy import Module, Tensor
from bigmodel_cli.tasks.base import AnyTaskOptions
from bigmodel_cli.tasks.loss import cross_entropy, judged
from bigmodel_cli.tasks.shown import SampleText


class CausalLMOptions(AnyTaskOptions):
    """Predict each token from those before it; scored by cross-entropy in nats per token."""

    type: Literal["causal_lm"] = "causal_lm"
    label_smoothing: Probability = Field(0.0, description="probability mass spread evenly over the vocabulary")
    sample_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        200, description="tokens of generated text shown when training ends"
    )
    sample_prompt: str = Field("\n", description="what the shown text continues")
    sample_temperature: NonNegative = Field(0.8, description="temperature of the shown text; 0 is greedy")

    def build(self, facts: Facts = NO_FACTS) -> CausalLM:
        """The task."""
        return CausalLM(self)

    def sample(self) -> SampleText | None:
        """A continuation of the prompt, unless it is to have no tokens."""
        if not self.sample_tokens:
            return None
        return SampleText(self.sample_prompt, self.sample_tokens, self.sample_temperature)


class CausalLM:
    """batch {"tokens": (B, T + 1)}; the model maps tokens (B, T) to logits (B, T, V).

    Where the batch has "segments" (B, T + 1), the model is told which document each token belongs to.
    """

    name = "causal_lm"
    metric = "loss"
    higher_is_better = False
    derived_from = "loss"
    needs = "vocab_size"
    unit = "tokens"
    reads: tuple[str, ...] = ("tokens",)

    def __init__(self, options: CausalLMOptions) -> None:
        self.options = options

    def shift(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Inputs (B, T) and targets (B, T), -1 where a row is over: the only place where the sequence moves by one."""
        tokens = batch["tokens"]
        return tokens[:, :-1], tokens[:, 1:]

    def loss(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over all targets, and how many there are."""
        inputs, targets = self.shift(batch)
        total = cross_entropy(logits_of(model, inputs, batch), targets, self.options.label_smoothing)
        return total, (targets != PADDING).sum()

    def size(self, batch: dict[str, Tensor]) -> Tensor:
        """The targets."""
        return (self.shift(batch)[1] != PADDING).sum()

    def score(self, model: Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per window: nats and targets ("loss"), and right first guesses ("accuracy")."""
        inputs, targets = self.shift(batch)
        nats, right = judged(logits_of(model, inputs, batch), targets)  # (B, T)
        counts = (targets != PADDING).sum(1)
        return {"loss": (nats.sum(1), counts), "accuracy": (right.sum(1).double(), counts)}

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Perplexity, and bits per token."""
        loss = metrics["loss"]
        return {"perplexity": math.exp(min(loss, 700.0)), "bits_per_token": loss / math.log(2)}


def logits_of(model: Module, inputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(B, T, V)   the model's logits, each document for itself where the batch says which is which."""
    segments = batch.get("segments")
    logits: Tensor = model(inputs) if segments is None else model(inputs, segments=segments[:, :-1])
    return logits
