"""Words of a sentence as tokens, one of which has a word's tag: the split of tagged sentences, and
the reader of sentences for `predict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel_cli.config import PADDING
from bigmodel_cli.data.base import Piece, Say, Split
from bigmodel_cli.data.classes import say_lacking
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.text.cleaning import checked, without_bom
from bigmodel_cli.data.text.ragged import Ragged
from bigmodel_cli.data.text.split import as_batch, encode, marks
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch


class Pieces:
    """Words to tokens, as in running text; the same in training and in `predict`."""

    def __init__(self, tokenizer: Tokenizer, context: int, piece: Piece) -> None:
        self.tokenizer, self.room, self.piece = tokenizer, context - 2, piece
        self.marks = marks(tokenizer)
        self.known: dict[str, list[int]] = {}

    def __call__(self, words: Sequence[str], place: str) -> tuple[list[int], list[int]]:
        """(tokens, the index of each word's tagged token), of the words that fit.

        The first word is always included. A word without tokens gets the end token.
        """
        tokens: list[int] = []
        at: list[int] = []
        for word in words:
            text = f" {word}" if tokens else word
            if text not in self.known:
                self.known[text] = [int(n) for n in encode(self.tokenizer, text, place)] or [
                    self.marks[1]
                ]
            end = len(tokens) + len(self.known[text])
            if end > self.room and tokens:
                break
            at.append(len(tokens) if self.piece == "first" else min(end, self.room) - 1)
            tokens += self.known[text]
        return tokens[: self.room], at

    def batch(self, rows: Sequence[tuple[Any, Any]]) -> dict[str, Tensor]:
        """{"tokens", "tags": (B, T)} of rows of tokens and their tags, between special tokens; -1
        after a row's end, and where there is no tag.
        """
        tokens, tags = (Ragged.of(side) for side in zip(*rows, strict=True))
        every = np.arange(len(rows))
        batch = as_batch(
            [tokens.take(every, tokens.lengths)], [tokens.lengths], self.marks, past=False
        )
        padded = np.pad(tags.take(every, tokens.lengths), ((0, 0), (1, 1)), constant_values=PADDING)
        return {**batch, "tags": torch.from_numpy(padded)}


class Tagged(Split):
    """{"tokens": (B, T), "tags": (B, T) the number of a word's tag at one of its tokens, else -1;
    "key": (B,)}.
    """

    def __init__(
        self,
        sentences: Sequence[Any],
        name: str,
        pieces: Pieces,
        classes: tuple[str, ...],
        say: Say,
    ) -> None:
        self.pieces = pieces
        self.rows: list[tuple[Ints, Ints]] = []
        numbers = {tag: number for number, tag in enumerate(classes)}
        cut, lost = 0, 0
        for sentence in sentences:
            tokens, at = pieces(sentence.words, sentence.place)
            tags = np.full(len(tokens), PADDING)
            tags[at] = [numbers[tag] for tag in sentence.tags[: len(at)]]
            self.rows.append((np.array(tokens), tags))
            cut, lost = cut + (len(at) < len(sentence.words)), lost + len(sentence.words) - len(at)
        if cut:
            say(
                f"warning: {cut:,} of {len(sentences):,} {name} sentences are cut to"
                f" {pieces.room + 2} tokens: {lost:,} of their words are neither learnt nor judged;"
                " data.context says how many fit"
            )
        self.lengths = np.array([len(tokens) + 2 for tokens, _ in self.rows])
        say_lacking(
            name,
            "word",
            np.unique(np.concatenate([t for _, t in self.rows])).tolist(),
            classes,
            say,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self, classes: int) -> tuple[int, ...]:
        """How many words have each tag."""
        tags = np.concatenate([tags for _, tags in self.rows])
        return tuple(np.bincount(tags[tags != PADDING], minlength=classes).tolist())

    def redrawn(self) -> str | None:
        return None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The sentences, padded to the longest."""
        return self.pieces.batch([self.rows[i] for i in samples.tolist()])


class Sentences:
    """Sentences that a user gives, words with blanks between: {"tokens", "tags": (B, T)}, where a
    tag of 0 asks for a prediction.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, piece: Piece) -> None:
        self.pieces = Pieces(tokenizer, context, piece)
        self.most = f"{context} tokens, marks included"

    def read(self, given: str, place: str) -> tuple[tuple[list[str], list[int], Ints], bool]:
        """(the words that fit, their tokens, where tags are asked for), and whether there are more
        words.
        """
        words = without_bom(checked(given, place)).split()
        if not words:
            raise DataError(f"{place} is empty: there is no word to tag")
        tokens, at = self.pieces(words, place)
        asked = np.full(len(tokens), PADDING)
        asked[at] = 0
        return (words[: len(at)], tokens, asked), len(at) < len(words)

    def windows(self, given: str, place: str) -> list[Any]:
        """It as a whole."""
        return [self.read(given, place)[0]]

    def batch(self, contents: Sequence[tuple[list[str], list[int], Ints]]) -> dict[str, Tensor]:
        """The sentences between special tokens, padded on the right."""
        return self.pieces.batch([(tokens, asked) for _, tokens, asked in contents])
