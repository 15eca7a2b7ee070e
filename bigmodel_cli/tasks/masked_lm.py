"""Masked language modelling: predict hidden tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import NO_DATASET, PADDING, DatasetInfo, Fraction, Probability
from bigmodel_cli.draw import KEY, draw, draw_below, several
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.logits import cross_entropy, token_nll
from bigmodel_cli.parts.row_share import share_of_row
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Scores
from bigmodel_cli.tasks.shown import Learnt, Spell, in_one_line, marked, real
from bigmodel_cli.tasks.tokens import TokenTask, row_sums

HIDDEN, SEEN, OTHER = 1, 2, 3
"""Streams of a row's random numbers: which tokens are chosen, how they are replaced, by what."""
DRAWS = 8
"""How often a user's text is judged, with other tokens hidden each time."""


class MaskedLMOptions(AnyTaskOptions):
    """Predict hidden tokens from both sides (BERT, Devlin et al. 2019); scored by cross-entropy."""

    type: Literal["masked_lm"] = "masked_lm"
    output: ClassVar[str] = "tokens"
    mask_prob: Probability = Field(0.15, description="of the tokens that are to be found")
    replace_mask: Fraction = Field(
        0.8, description="of those, how many the mask takes the place of"
    )
    replace_random: Fraction = Field(
        0.1,
        description=(
            "of those, how many a token drawn from the vocabulary takes the place of; the rest stay"
        ),
    )
    whole_words: bool = Field(
        False, description="find all tokens of a word or none; needs data.words: true"
    )

    @model_validator(mode="after")
    def _shares(self) -> MaskedLMOptions:
        if self.replace_mask + self.replace_random > 1 + 1e-9:
            raise ValueError(
                f"replace_mask {self.replace_mask} and replace_random {self.replace_random} are"
                " more than 1 together; lower one"
            )
        return self

    def build(self, info: DatasetInfo = NO_DATASET) -> MaskedLM:
        return MaskedLM(self, info)

    def example(self, model: Any, info: DatasetInfo, x: Tensor, second: int) -> tuple[Tensor, ...]:
        """Also a mask of hidden tokens, as many as on average."""
        count = max(1, round(self.mask_prob * x.shape[0] * x.shape[1]))
        hidden = torch.zeros(count, dtype=torch.int64, device=x.device)
        return x, x, x.bool(), hidden


class MaskedLM(TokenTask):
    """batch {"tokens": (B, T + 1), "key": (B,)}; the model gives logits (N, V) of hidden tokens.

    It gets the tokens, and where they are `masked` and scored (`at`), (B, T) each.

    Where the batch has "words" (B, T + 1), the index of each token's word within its row, tokens of
    no word (-1: special tokens) are never hidden; and with `whole_words` a word is hidden as a
    whole (Devlin et al.'s addition of 2019).

    Each token (or word) is chosen independently with probability `mask_prob`, as in RoBERTa's and
    transformers' code (BERT's chooses a fixed number per row, at least one): a short row may have
    none, and then counts nothing. A random token is drawn uniformly from the vocabulary, special
    tokens included, as in BERT's code, so that it is the same one in one of V cases. Everything is
    drawn by the rows' keys, along the row, so that neighbours, micro-batches, order and padding
    change nothing. Training hides other tokens in each epoch. Evaluation always hides the same ones
    of a sample, by its index in the split, with the mask alone, so that figures can be compared.
    """

    name = "masked_lm"
    takes_late = True
    context_fault = ""
    teachable = True
    draws = True

    def __init__(self, options: MaskedLMOptions, info: DatasetInfo = NO_DATASET) -> None:
        self.options, self.vocab_size = options, info.vocab_size or 0
        self.reads = ("tokens", "words") if options.whole_words else ("tokens",)

    def remedy(self, missing: list[str]) -> str:
        """Suggest data.words where word indices are missing."""
        return "; set data.words: true" if missing == ["words"] else ""

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, T) tokens, which of them may be hidden, and with `whole_words` their word indices."""
        tokens = batch["tokens"][:, :-1]
        if "words" not in batch:
            return tokens, tokens != PADDING, None
        words = batch["words"][:, :-1]
        return tokens, words != PADDING, words.clamp(min=0) if self.options.whole_words else None

    def forward(self, model: Any, batch: Batch, training: bool = True) -> tuple[Tensor, Tensor]:
        """(N, V) logits of the hidden tokens, and their mask (B, T), of the model's positions."""
        options = self.options
        tokens, free, words = self.inputs(batch)
        at = self.chosen(batch[KEY], tokens, words) & free
        share = share_of_row(tokens.shape[1])
        own = at if share is None else share.marked(at)
        if not training:
            return found(model, batch, tokens, at, own), own
        how = draw(batch[KEY], SEEN, tokens.shape[1])
        masked = at & (how < options.replace_mask)
        swapped = at & ~masked & (how < options.replace_mask + options.replace_random)
        other = draw_below(batch[KEY], OTHER, tokens.shape[1], self.vocab_size)
        return found(model, batch, torch.where(swapped, other, tokens), masked, own), own

    def hidden(self, batch: Batch, at: Tensor) -> Tensor:
        """(N,)   the hidden tokens."""
        tokens = self.inputs(batch)[0]
        share = share_of_row(tokens.shape[1])
        return tokens[at] if share is None else share.tokens(tokens)[at]

    def asked(self, batch: Batch) -> Batch:
        """Each row several times, with other tokens hidden; a last column is no input."""
        rows = {name: F.pad(values, (0, 1), value=PADDING) for name, values in batch.items()}
        return several(rows, DRAWS)

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over the hidden tokens, and their number."""
        logits, at = outputs
        return cross_entropy(logits, self.hidden(batch, at)), at.sum()

    def target_logits(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """(N, V) of the hidden tokens."""
        return outputs[0]

    def targets_loss(
        self, outputs: tuple[Tensor, Tensor], batch: Batch
    ) -> Callable[[slice, Tensor], Tensor]:
        """Their cross-entropy."""
        wanted = self.hidden(batch, outputs[1])
        return lambda rows, logits: cross_entropy(logits, wanted[rows])

    def target_rows(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """(N,) of the hidden tokens."""
        return outputs[1].nonzero()[:, 0]

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """The first row with its hidden tokens marked; those that may be hidden are counted."""
        tokens, free, words = self.inputs(batch)
        at = self.chosen(batch[KEY], tokens, words) & free
        row = real(tokens[0])
        text = marked(row, at[0, : len(row)].tolist(), lambda part: spell("tokens", part))
        count, of = int(free.sum()), int((tokens != PADDING).sum())
        share = f"may be hidden and are then learnt ({self.options.mask_prob:.0%} of them)"
        return Learnt(in_one_line(text), count, of, share)

    def size(self, batch: Batch) -> Tensor:
        """The number of tokens read, hidden or not."""
        return (batch["tokens"][:, :-1] != PADDING).sum()

    def score(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> tuple[Scores, Answers]:
        """Per row: nats over its hidden tokens ("loss"), and correct argmax ("accuracy")."""
        logits, at = outputs
        nats, right = token_nll(logits, self.hidden(batch, at))
        pairs = {"loss": nats, "accuracy": right}
        return {name: (row_sums(values, at), at.sum(1)) for name, values in pairs.items()}, {}

    def chosen(self, keys: Tensor, tokens: Tensor, words: Tensor | None) -> Tensor:
        """(B, T) bool: the chosen tokens, by one random number per token, or per word."""
        drawn = draw(keys, HIDDEN, tokens.shape[1])
        return (drawn if words is None else drawn.gather(1, words)) < self.options.mask_prob


def found(model: Any, batch: Batch, seen: Tensor, masked: Tensor, at: Tensor) -> Tensor:
    """(N, V) logits where `at` is True; the model also gets a pair's "types" (B, T + 1)."""
    at = at.flatten().nonzero()[:, 0]
    types = {"types": batch["types"][:, :-1]} if "types" in batch else {}
    y: Tensor = model(seen, masked=masked, at=at, **types)
    return y
