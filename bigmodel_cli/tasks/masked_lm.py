"""Masked language modelling: find the tokens that were hidden."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bigmodel_cli.config import Fraction, Options, Probability
from bigmodel_cli.lazy import F, Module, Tensor, torch

IGNORED = -1
"""A token that is padding: it is never hidden, and stays padding for the model."""


class MaskedLMOptions(Options):
    """Find hidden tokens from both sides (Devlin et al. 2019, BERT); scored by cross-entropy in nats per hidden token."""

    type: Literal["masked_lm"] = "masked_lm"
    fraction: Probability = Field(0.15, description="of the tokens that are to be found")
    masked: Fraction = Field(0.8, description="of those, how many the mask takes the place of")
    swapped: Fraction = Field(0.1, description="of those, how many another token takes the place of; the rest stay")

    def build(self) -> MaskedLM:
        """The task."""
        return MaskedLM(self)


class MaskedLM:
    """batch {"tokens": (B, T + 1)}; the model maps tokens, `masked` and `at`, each (B, T), to logits (N, V) where `at` is True.

    Training hides other tokens each time; the tokens that take the place of others are drawn from the batch, so that they come as
    often as they are. Evaluation always hides the same, with the mask alone, so that its figures can be compared.
    """

    name = "masked_lm"
    metric = "loss"
    higher_is_better = False
    needs = "vocab_size"
    reads: tuple[str, ...] = ("tokens",)

    def __init__(self, options: MaskedLMOptions) -> None:
        self.options = options

    def loss(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over the hidden tokens, and how many there are."""
        options, tokens = self.options, batch["tokens"][:, :-1]  # (B, T)
        u = torch.rand(2, *tokens.shape, device=tokens.device)
        at = (u[0] < options.fraction) & (tokens != IGNORED)
        masked = at & (u[1] < options.masked)
        swapped = at & (u[1] >= 1 - options.swapped)
        other = tokens.flatten()[torch.randint(tokens.numel(), tokens.shape, device=tokens.device)]
        seen = torch.where(swapped & (other != IGNORED), other, tokens)
        logits = model(seen, masked=masked, at=at)
        return F.cross_entropy(logits.float(), tokens[at], reduction="sum"), at.sum()

    def score(self, model: Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per row: nats over its hidden tokens ("loss"), and right first guesses ("accuracy")."""
        tokens = batch["tokens"][:, :-1]
        at = self.chosen(tokens)
        logits = model(tokens, masked=at, at=at).float()  # (N, V)
        nats, right = (torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device) for _ in range(2))
        nats[at] = F.cross_entropy(logits, tokens[at], reduction="none").double()
        right[at] = (logits.argmax(-1) == tokens[at]).double()
        counts = at.sum(1)
        return {"loss": (nats.sum(1), counts), "accuracy": (right.sum(1), counts)}

    def chosen(self, tokens: Tensor) -> Tensor:
        """(B, T) bool: which tokens evaluation hides, a function of the row alone (a low-discrepancy sequence, shifted by it)."""
        real = tokens != IGNORED
        shift = (tokens.clamp(min=0).sum(1, keepdim=True).double() * 0.6180339887498949) % 1
        place = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float64) * 0.7548776662466927
        return ((place + shift) % 1 < self.options.fraction) & real

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Perplexity of the hidden tokens."""
        return {"perplexity": math.exp(min(metrics["loss"], 700.0))}
