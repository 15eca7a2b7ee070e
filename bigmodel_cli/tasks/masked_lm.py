"""Masked language modelling: find the tokens that were hidden."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from bigmodel_cli.config import NO_FACTS, PADDING, Facts, Fraction, Probability
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.tasks.base import AnyTaskOptions
from bigmodel_cli.tasks.loss import cross_entropy, judged


class MaskedLMOptions(AnyTaskOptions):
    """Find hidden tokens from both sides (Devlin et al. 2019, BERT); scored by cross-entropy in nats per hidden token."""

    type: Literal["masked_lm"] = "masked_lm"
    fraction: Probability = Field(0.15, description="of the tokens that are to be found")
    masked: Fraction = Field(0.8, description="of those, how many the mask takes the place of")
    swapped: Fraction = Field(0.1, description="of those, how many another token takes the place of; the rest stay")
    whole_words: bool = Field(False, description="find all tokens of a word or none; needs data.words: true")

    def build(self, facts: Facts = NO_FACTS) -> MaskedLM:
        """The task."""
        return MaskedLM(self)


class MaskedLM:
    """batch {"tokens": (B, T + 1)}; the model maps tokens, `masked` and `at`, each (B, T), to logits (N, V) where `at` is True.

    Where the batch has "words" (B, T + 1), which number each token's word within its row, tokens of no word (-1: marks) are never
    hidden; and with `whole_words` a word is hidden as a whole (Devlin et al.'s addition of 2019).

    Training hides other tokens each time; the tokens that take the place of others are drawn from the batch, so that they come as
    often as they are. Evaluation always hides the same, with the mask alone, so that its figures can be compared.
    """

    name = "masked_lm"
    metric = "loss"
    higher_is_better = False
    derived_from = "loss"
    needs = "vocab_size"
    reads: tuple[str, ...]

    def __init__(self, options: MaskedLMOptions) -> None:
        self.options = options
        self.reads = ("tokens", "words") if options.whole_words else ("tokens",)

    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, T) tokens, which of them may be hidden, and with `whole_words` the number of each one's word."""
        tokens = batch["tokens"][:, :-1]
        if "words" not in batch:
            return tokens, tokens != PADDING, None
        words = batch["words"][:, :-1]
        return tokens, words != PADDING, words.clamp(min=0) if self.options.whole_words else None

    def loss(self, model: Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over the hidden tokens, and how many there are."""
        options = self.options
        tokens, free, words = self.inputs(batch)
        u = torch.rand(2, *tokens.shape, device=tokens.device)
        drawn = u[0] if words is None else u[0].gather(1, words)  # one number for all tokens of a word
        at = (drawn < options.fraction) & free
        masked = at & (u[1] < options.masked)
        swapped = at & (u[1] >= 1 - options.swapped)
        other = tokens.flatten()[torch.randint(tokens.numel(), tokens.shape, device=tokens.device)]
        seen = torch.where(swapped & (other != PADDING), other, tokens)
        logits = found(model, batch, seen, masked, at)
        return cross_entropy(logits, tokens[at]), at.sum()

    def score(self, model: Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per row: nats over its hidden tokens ("loss"), and right first guesses ("accuracy")."""
        tokens, free, words = self.inputs(batch)
        at = self.chosen(tokens, words) & free
        nats, right = (torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device) for _ in range(2))
        nats[at], hit = judged(found(model, batch, tokens, at, at), tokens[at])
        right[at] = hit.double()
        counts = at.sum(1)
        return {"loss": (nats.sum(1), counts), "accuracy": (right.sum(1), counts)}

    def chosen(self, tokens: Tensor, words: Tensor | None) -> Tensor:
        """(B, T) bool: where evaluation hides, a function of the row alone (a low-discrepancy sequence, shifted by it)."""
        shift = (tokens.clamp(min=0).sum(1, keepdim=True).double() * 0.6180339887498949) % 1
        place = torch.arange(tokens.shape[1], device=tokens.device) if words is None else words
        return (place.double() * 0.7548776662466927 + shift) % 1 < self.options.fraction

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        """Perplexity of the hidden tokens."""
        return {"perplexity": math.exp(min(metrics["loss"], 700.0))}


def found(model: Module, batch: dict[str, Tensor], seen: Tensor, masked: Tensor, at: Tensor) -> Tensor:
    """(N, V) logits where `at` is True; a pair's "types" (B, T + 1) go to the model too."""
    at = at.flatten().nonzero()[:, 0]
    if "types" in batch:
        pair: Tensor = model(seen, batch["types"][:, :-1], masked, at)
        return pair
    logits: Tensor = model(seen, masked=masked, at=at)
    return logits
