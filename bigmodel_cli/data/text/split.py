"""Splits of rows of tokens: those of a table, and pairs of a source and a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.config import PADDING, DatasetInfo
from bigmodel_cli.data.base import Say, Split
from bigmodel_cli.data.classes import classes_in, say_lacking
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.targets import target_name
from bigmodel_cli.data.text.own_tokenizers import UnknownCharacter
from bigmodel_cli.data.text.pair_files import SIDES, PairSource
from bigmodel_cli.data.text.parts import token_dtype
from bigmodel_cli.data.text.ragged import Marks, Ragged, fit_lengths, join_sides, leave_out
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.word_ids import Words
from bigmodel_cli.data.trained_on import Hashes
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch


def encode(tokenizer: Tokenizer, text: str, place: str) -> Any:
    """The tokens of a text (T,).

    Raises `DataError` naming its place for a character that has no token.
    """
    try:
        return tokenizer.encode_array(text) if text else []
    except UnknownCharacter as error:
        raise type(error)(error.character, error.offset, place) from None


class Table(Split):
    """{"tokens": (B, T) int64, -1 after a row's end; "key": (B,)}, and the target of a row
    (`target_name`).

    A row is a start token (or the end-of-text token where the tokenizer has none; `pool: cls` reads
    it), the text, an end token, and for a pair the second text and its end token, with "types" (B,
    T): 0, from the second text on 1 (`Marks` says what RoBERTa has). Without labels one padding
    column (-1) is appended, because language-modelling tasks drop the last column. "words" (B, T)
    numbers each token's word where the options ask for it.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        options: Any,
        tokenizer: Tokenizer,
        info: DatasetInfo,
        say: Say,
    ) -> None:
        dtype = token_dtype(tokenizer)
        self.sides = [
            Ragged.read(folder, f"{name}.{index}", dtype) for index in range(len(options.text))
        ]
        self.target = target_name(info)
        self.labels = np.load(folder / f"{name}.labels.npy") if self.target else None
        self.marks = marks(tokenizer)
        self.options = options
        self.words = Words(tokenizer) if options.words else None
        room = self.marks.room(options.context, self.sides)
        kept = fit_lengths([side.lengths for side in self.sides], room)
        self.lengths = np.sum(kept, 0) + options.context - room
        whole = np.sum([side.lengths for side in self.sides], 0)
        cut = int((whole > room).sum())
        if cut:
            say(f"{cut:,} of {len(self):,} {name} rows are cut to {options.context} tokens")
        if self.labels is not None and info.classes:
            say_lacking(name, "row", classes_in(self.labels), info.classes, say)

    def __len__(self) -> int:
        return len(self.sides[0].lengths)

    def redrawn(self) -> str | None:
        dropped = self.options.token_dropout
        return "data.token_dropout leaves out other tokens in each epoch" if dropped else None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The rows, padded to the longest."""
        room = self.marks.room(self.options.context, self.sides)
        lengths = fit_lengths([side.lengths[samples] for side in self.sides], room)
        taken = [side.take(samples, n) for side, n in zip(self.sides, lengths, strict=True)]
        if augment and self.options.token_dropout:
            p = self.options.token_dropout
            pairs = [leave_out(t, p, seed, epoch, samples, index) for index, t in enumerate(taken)]
            taken, lengths = [t for t, _ in pairs], [n for _, n in pairs]
        batch = as_batch(taken, lengths, self.marks, past=self.labels is None)
        if self.words is not None:
            batch["words"] = self.words(batch["tokens"])
        if self.labels is not None and self.target is not None:
            batch[self.target] = torch.from_numpy(self.labels[samples])
        return batch


def marks(tokenizer: Tokenizer) -> Marks:
    """The special tokens before a row and after each of its texts."""
    assert tokenizer.end_of_text is not None
    assert tokenizer.start_of_text is not None
    return Marks(
        tokenizer.start_of_text,
        tokenizer.end_of_text,
        tokenizer.between,
        tokenizer.second_type,
    )


def as_batch(taken: list[Ints], lengths: list[Ints], ends: Marks, past: bool) -> dict[str, Tensor]:
    """{"tokens", for a pair "types"}: (B, T), with one more column where `past`."""
    tokens, types = join_sides(taken, lengths, ends)
    if past:
        tokens, types = (
            np.pad(a, ((0, 0), (0, 1)), constant_values=PADDING) for a in (tokens, types)
        )
    batch = {"tokens": torch.from_numpy(tokens)}
    return batch if len(taken) == 1 else {**batch, "types": torch.from_numpy(types)}


def batch_of_texts(
    items: Sequence[Sequence[Any]], tokenizer: Tokenizer, context: int
) -> dict[str, Tensor]:
    """{"tokens": (B, T), for pairs "types"}: items of one or two sides' tokens, as `Table` gives
    them to a classifier.

    `context` is the checkpoint's `info.context`.
    """
    sides = [Ragged.of(rows) for rows in zip(*items, strict=True)]
    own = marks(tokenizer)
    lengths = fit_lengths([side.lengths for side in sides], own.room(context, sides))
    rows = np.arange(len(items))
    return as_batch(
        [side.take(rows, n) for side, n in zip(sides, lengths, strict=True)],
        lengths,
        own,
        False,
    )


class Pairs(Split):
    """{"source": (B, S), "target": (B, T + 1), "key": (B,)} int64, -1 after a row's end.

    A source is its tokens and the end token; a target begins with the start of generation, which is
    the end token where no published tokenizer says another. In training, pairs with an empty or too
    long side are left out; in evaluation every pair stays, cut where it is too long. `lengths` are
    of the longer side.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        source: PairSource,
        tokenizers: dict[str, Tokenizer],
        options: Any,
        say: Say,
    ) -> None:
        self.pairs, self.longest = source, options.context - 1
        self.ends = {
            side: int(tokenizer.end_of_text or 0) for side, tokenizer in tokenizers.items()
        }
        self.target_start = int(tokenizers["target"].target_start or 0)
        self.sides = {
            side: Ragged.read(folder, f"{name}.{side}", token_dtype(tokenizers[side]))
            for side in SIDES
        }
        self.hashes: Hashes = np.load(folder / f"{name}.items.npy")
        both = np.stack([self.sides[side].lengths for side in SIDES])
        self.kept = np.arange(both.shape[1])
        if name == "train":
            longest = both[1] if options.long_sources == "cut" else both.max(0)
            self.kept = np.flatnonzero((both.min(0) > 0) & (longest <= self.longest))
            left = both.shape[1] - len(self.kept)
            if left:
                say(
                    f"{left:,} of {both.shape[1]:,} training pairs are left out: empty, or longer"
                    f" than {options.context}"
                )
            if not len(self.kept):
                raise DataError(
                    f"no training pair fits into data.context {options.context}; make it larger"
                )
        cut = (both[:, self.kept] > self.longest).sum(1)
        for side, count in zip(SIDES, cut.tolist(), strict=True):
            if count:
                say(
                    f"{count:,} of {len(self.kept):,} {name} {side}s are cut to {options.context}"
                    " tokens"
                )
        self.lengths = np.minimum(both.max(0)[self.kept], self.longest) + 1

    def __len__(self) -> int:
        return len(self.kept)

    def items(self) -> Hashes:
        """(N,) the hash of each pair."""
        return self.hashes[self.kept]

    def longest_rows(self) -> tuple[int, ...]:
        """(of the sources, of the targets without their last token)."""
        batch = self.long_batch()
        return batch["source"].shape[1], batch["target"].shape[1] - 1

    def texts(self) -> tuple[list[str], list[str]]:
        """(sources, targets) of every pair."""
        pairs = list(self.pairs.rows())
        return [pairs[i][0] for i in self.kept], [pairs[i][1] for i in self.kept]

    def redrawn(self) -> str | None:
        return None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The pairs, each side padded to its longest."""
        rows = self.kept[samples]
        return {"source": self.side("source", rows, 0), "target": self.side("target", rows, 1)}

    def side(self, side: str, rows: Ints, first: int) -> Tensor:
        """(B, first + longest + 1): `first` start tokens, the tokens, the end token."""
        lengths = np.minimum(self.sides[side].lengths[rows], self.longest)
        taken = np.pad(
            self.sides[side].take(rows, lengths), ((0, 0), (first, 1)), constant_values=PADDING
        )
        taken[:, :first] = self.target_start
        taken[np.arange(len(rows)), first + lengths] = self.ends[side]
        return torch.from_numpy(taken)
