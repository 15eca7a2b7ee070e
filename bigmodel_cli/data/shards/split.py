"""Rows of tokens from shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigmodel_cli.config import PADDING
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.shards.cache import ShardCache
from bigmodel_cli.data.shards.near import InShards
from bigmodel_cli.data.shards.texts import Tokens
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch


@dataclass(frozen=True)
class Form:
    """How rows are cut: T, the tokens that there may be, the end-of-text token where a token sees
    only its own document, and how many shards are mixed.
    """

    context: int
    vocab_size: int
    end: int | None
    mixed: int


class TokenRows(InShards):
    """{"tokens": (B, T + 1) int64, "key": (B,)}, and "segments" where asked for.

    Each shard is cut alone, so that a row needs one of them. In training the last tokens of a
    shard, fewer than T, are left out; in evaluation each token but a shard's first is a target
    once, with -1 after the end.
    """

    def __init__(self, shards: Sequence[Tokens], form: Form, cache: ShardCache, name: str) -> None:
        self.shards, self.form = shards, form
        totals = np.array([shard.flat.count for shard in shards], np.int64)
        whole = (totals - 1) // form.context
        rows = np.maximum(0, whole if name == "train" else -(-(totals - 1) // form.context))
        self.left_out = int((totals - rows * form.context - (rows > 0)).clip(0).sum())
        if not rows.any():
            raise DataError(
                f"the {name} split: no shard has more than {form.context} tokens, which"
                " data.context needs for one row; make it smaller, or the shards larger"
            )
        super().__init__(rows, shards, cache, form.mixed if name == "train" else None)

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The rows, each read alone."""
        tokens = torch.from_numpy(self.take(samples))
        if self.form.end is None:
            return {"tokens": tokens}
        return {"tokens": tokens, "segments": (tokens == self.form.end).cumsum(1)}

    def take(self, samples: Ints) -> Any:
        """(B,) -> (B, T + 1) int64."""
        numbers, within = self.shards_of(samples)
        width = self.form.context + 1
        rows, filled = np.full((len(samples), width), PADDING, np.int64), np.zeros_like(samples)
        firsts = within * self.form.context
        for number in np.unique(numbers).tolist():
            shard, own = self.shards[number], np.flatnonzero(numbers == number)
            most = shard.flat.count
            ranges = [(first, min(first + width, most)) for first in firsts[own].tolist()]
            for at, found in zip(own.tolist(), shard.take(self.cache, ranges), strict=True):
                rows[at, : len(found)], filled[at] = found, len(found)
            self.prefetch.used(number)
        self.check(rows, filled, numbers)
        return rows

    def check(self, rows: Any, filled: Ints, numbers: Ints) -> None:
        """Raise `DataError` for a token that the vocabulary does not have; what padding is written
        as is none, so it is looked for in the `filled` places alone.
        """
        outside = (rows >= self.form.vocab_size) | (rows < 0)
        outside &= np.arange(rows.shape[1]) < filled[:, None]
        if outside.any():
            at = int(np.flatnonzero(outside.any(1))[0])
            raise DataError(
                f"{self.shards[int(numbers[at])].shard.place}: the token"
                f" {int(rows[at][outside[at]][0])}, and the vocabulary has"
                f" {self.form.vocab_size:,}; give the tokenizer that it was made with"
                " (data.tokenizer), or data.vocab_size"
            )
