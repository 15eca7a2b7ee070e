"""Next-token prediction."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NO_DATASET, DatasetInfo, NonNegative, Probability
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.metrics import LOSS
from bigmodel_cli.tasks.base import AnyTaskOptions, Batch
from bigmodel_cli.tasks.shown import SampleText
from bigmodel_cli.tasks.tokens import TokenTask


class CausalLMOptions(AnyTaskOptions):
    """Predict each token from those before it; scored by cross-entropy in nats per token."""

    type: Literal["causal_lm"] = "causal_lm"
    output: ClassVar[str] = "next_tokens"
    isolates: ClassVar[bool] = True
    label_smoothing: Probability = Field(
        0.0, description="probability mass spread evenly over the vocabulary"
    )
    sample_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        200, description="tokens of generated text shown when training ends"
    )
    sample_prompt: str = Field("\n", description="what the shown text continues")
    sample_temperature: NonNegative = Field(
        0.8, description="temperature of the shown text; 0 is greedy"
    )

    def build(self, info: DatasetInfo = NO_DATASET) -> CausalLM:
        return CausalLM(self)

    def sample(self) -> SampleText | None:
        """A continuation of the prompt, unless it has no tokens."""
        if not self.sample_tokens:
            return None
        return SampleText(self.sample_prompt, self.sample_tokens, self.sample_temperature)


class CausalLM(TokenTask):
    """batch {"tokens": (B, T + 1)}; the model maps tokens (B, T) to logits (B, T, V).

    Where the batch has "segments" (B, T + 1), the model is told which document each token belongs
    to.
    """

    name = "causal_lm"
    takes_late = True
    context_fault = ""
    reads = ("tokens",)
    sequence = "tokens"
    metrics: ClassVar = {**TokenTask.metrics, "bits_per_token": LOSS}

    def __init__(self, options: CausalLMOptions) -> None:
        self.label_smoothing = options.label_smoothing

    def forward(self, model: Any, batch: Batch, training: bool = True) -> Tensor:
        """(B, T, V)   the model's logits; "segments" in the batch keep documents apart."""
        inputs, segments = self.shift(batch)[0], batch.get("segments")
        y: Tensor = model(inputs) if segments is None else model(inputs, segments=segments[:, :-1])
        return y

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Perplexity, and bits per token."""
        return {**super().derived(metrics), "bits_per_token": metrics["loss"] / math.log(2)}
