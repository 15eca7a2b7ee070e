"""The synthetic problems, and their samples as a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bigmodel_cli.config import PADDING
from bigmodel_cli.data.base import Split
from bigmodel_cli.data.order import Ints, draw, permute
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.trained_on import Hashes
from bigmodel_cli.draw import key_of as seeded
from bigmodel_cli.draw import mix
from bigmodel_cli.lazy import Tensor, torch

FORMAT = 1
MOST = 1 << 60
"""Most samples that are distinguished by number; beyond those, the remaining symbols are drawn."""
REST = 3  # stream of their random numbers
AT_ONCE = 1 << 16  # samples, when all are hashed
Rows = tuple[Ints, Ints]
"""Samples of one length, (B, N) numbers of symbols, and which of the N are the answer, (N,) bool.
"""


class Problem(NamedTuple):
    """A problem of `symbols` symbols: their default number, and the functions that make it.

    `choices` gives the number of choices for each number that makes up a sample, and `rows` makes
    samples of such numbers. `names` are those of the symbols and of special ones such as "=".
    """

    symbols: int
    choices: Callable[[int, int], list[int]]
    rows: Callable[[Ints, int], Rows]
    names: Callable[[int], list[str]]

    def samples(self, numbers: Ints, length: int, symbols: int, seed: int) -> Rows:
        """Samples of one length by their numbers (B,), each below `space`."""
        choices = self.choices(length, symbols)
        told = _told_apart(choices)
        x = np.empty((len(numbers), len(choices)), np.int64)
        rest = numbers = permute(numbers, math.prod(choices[:told]), (seed, length))
        for place, choice in enumerate(choices[:told]):
            rest, x[:, place] = np.divmod(rest, choice)
        drawn = draw(seed, length, numbers, REST, len(choices) - told)
        x[:, told:] = drawn * np.array(choices[told:])
        return self.rows(x, symbols)

    def space(self, length: int, symbols: int) -> int:
        """How many samples of some length are distinguished."""
        choices = self.choices(length, symbols)
        return math.prod(choices[: _told_apart(choices)])


def _digits(symbols: int) -> list[str]:
    return [*map(str, range(symbols)), "="]


def _answered(given: Ints, answer: Ints, symbols: int) -> Rows:
    """The question, "=" and the answer."""
    equals = np.full((len(given), 1), symbols)
    return (
        np.hstack((given, equals, answer)),
        np.arange(given.shape[1] + 1 + answer.shape[1]) > given.shape[1],
    )


def _of_sequence(answer: Callable[[Ints, int], Ints], symbols: int = 10) -> Problem:
    """A sequence of symbols and the answer to it."""
    return Problem(
        symbols, lambda n, s: [s] * n, lambda x, s: _answered(x, answer(x, s), s), _digits
    )


def _sums(x: Ints, symbols: int) -> Rows:
    """a + b = their sum modulo the number of symbols."""
    terms = np.full((len(x), 2 * x.shape[1] - 1), symbols + 1)
    terms[:, ::2] = x
    return _answered(terms, x.sum(1, keepdims=True) % symbols, symbols)


def _recall(x: Ints, symbols: int) -> Rows:
    """Pairs of a key and its value, then each key again, in another order, before its value."""
    keys, values, order = np.split(x, 3, 1)
    keys, order = _arranged(keys, symbols // 2), _arranged(order, keys.shape[1])
    pairs = np.stack((keys, values + symbols // 2), 2)  # (B, n, 2)
    asked = np.take_along_axis(pairs, order[:, :, None], 1)
    place = np.arange(4 * keys.shape[1])
    return np.concatenate((pairs, asked), 1).reshape(len(x), -1), (place % 2 == 1) & (
        place >= 2 * keys.shape[1]
    )


def _arranged(chosen: Ints, count: int) -> Ints:
    """(B, n) numbers, the i-th below count - i -> (B, n) different numbers below count (Fisher and
    Yates 1938).
    """
    pool, rows = np.tile(np.arange(count), (len(chosen), 1)), np.arange(len(chosen))
    for i in range(chosen.shape[1]):
        other = i + chosen[:, i]
        pool[rows, i], pool[rows, other] = pool[rows, other], pool[rows, i].copy()
    return pool[:, : chosen.shape[1]]


PROBLEMS = {
    "copy": _of_sequence(lambda x, s: x),
    "reverse": _of_sequence(lambda x, s: x[:, ::-1]),
    "sort": _of_sequence(lambda x, s: np.sort(x, 1)),
    "parity": _of_sequence(lambda x, s: x.sum(1, keepdims=True) % 2, 2),
    "running_parity": _of_sequence(lambda x, s: x.cumsum(1) % 2, 2),
    "modular_sum": Problem(97, lambda n, s: [s] * n, _sums, lambda s: [*_digits(s), "+"]),
    "recall": Problem(
        64,
        lambda n, s: [*range(s // 2, s // 2 - n, -1), *[s - s // 2] * n, *range(n, 0, -1)],
        _recall,
        lambda s: [*(f"k{i}" for i in range(s // 2)), *(f"v{i}" for i in range(s - s // 2))],
    ),
}


def _told_apart(choices: list[int]) -> int:
    """How many of the first numbers of a sample have at most `MOST` values together."""
    product = 1
    for place, choice in enumerate(choices):
        product *= choice
        if product > MOST:
            return place
    return len(choices)


class Synthetic(Split):
    """Samples of a problem, by their numbers and lengths (N,).

    An end token follows a text, as its last target, except for recall.

    text: {"tokens", "loss_mask": (B, T + 1)}; pairs: {"source": (B, S), "target", "loss_mask": (B,
    T + 1)}, with special tokens as in those of files; labels: {"tokens": (B, T), "label": (B,)},
    between special tokens. "key" (B,); -1 after a row's end.
    """

    answered: ClassVar[bool] = True

    def __init__(
        self,
        options: Any,
        tokenizer: Tokenizer,
        tokens: Ints,
        numbers: Ints,
        own: Ints,
    ) -> None:
        self.options, self.tokenizer, self.tokens, self.numbers, self.own = (
            options,
            tokenizer,
            tokens,
            numbers,
            own,
        )
        widths = {n: options.width(n) for n in np.unique(own).tolist()}
        if options.form == "pairs" or {*widths.values()} != {options.longest()}:
            self.lengths = np.array([widths[n] for n in own.tolist()])

    def __len__(self) -> int:
        return len(self.numbers)

    def longest_rows(self) -> tuple[int, ...]:
        """For pairs (of the sources, of the targets without their last token)."""
        if self.options.form != "pairs":
            return super().longest_rows()
        batch = self.long_batch()
        return batch["source"].shape[1], batch["target"].shape[1] - 1

    def by_length(self, samples: Ints) -> Iterator[tuple[Ints, Ints, Any]]:
        """(places among the samples, those as `Problem.samples` has them) for each length."""
        for length in np.unique(self.own[samples]).tolist():
            places = np.flatnonzero(self.own[samples] == length)
            yield places, *self.options.rows(self.numbers[samples[places]], length)

    def labels(self) -> Ints:
        """(N,) the answers of one symbol."""
        labels = np.empty(len(self), np.int64)
        for places, rows, answer in self.by_length(np.arange(len(self))):
            labels[places] = rows[:, answer][:, 0]
        return labels

    def items(self) -> Hashes:
        """(N,) a hash of each sample's symbols, independent of the seed."""
        hashes, problem = np.empty(len(self), np.uint64), list(PROBLEMS).index(self.options.problem)
        for first in range(0, len(self), AT_ONCE):
            chunk = np.arange(first, min(first + AT_ONCE, len(self)))
            for places, rows, _ in self.by_length(chunk):
                found = np.full(
                    len(rows), seeded(FORMAT, problem, self.options.count, rows.shape[1])
                )
                for column in rows.T:
                    found = mix(found ^ column.astype(np.uint64))
                hashes[chunk[places]] = found
        return hashes

    def texts(self) -> tuple[list[str], list[str]]:
        if self.options.form != "pairs":
            return super().texts()
        found = {}
        for places, rows, answer in self.by_length(np.arange(len(self))):
            for place, row in zip(places.tolist(), self.tokens[rows], strict=True):
                found[place] = [
                    self.tokenizer.decode(row[where].tolist()) for where in (~answer, answer)
                ]
        return [found[i][0] for i in range(len(self))], [found[i][1] for i in range(len(self))]

    def redrawn(self) -> str | None:
        return None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The samples, padded to the longest."""
        pieces = [
            (places, self.marked(rows, answer)) for places, rows, answer in self.by_length(samples)
        ]
        batch = {}
        for name, sample in pieces[0][1].items():
            width = max(piece[name].shape[1] for _, piece in pieces)
            whole = np.full((len(samples), width), False if sample.dtype == bool else PADDING)
            for places, piece in pieces:
                whole[places, : piece[name].shape[1]] = piece[name]
            batch[name] = torch.from_numpy(whole[:, 0] if name == "label" else whole)
        return batch

    def marked(self, rows: Ints, answer: Any) -> dict[str, Any]:
        """The tensors of a batch for samples of one length (B, N); a label is (B, 1)."""
        marks = (self.tokenizer.start_of_text, self.tokenizer.end_of_text)
        start, end = (np.full((len(rows), 1), mark) for mark in marks)
        given, said = (self.tokens[rows[:, where]] for where in (~answer, answer))
        if self.options.form == "labels":
            return {"tokens": np.hstack((start, given, end)), "label": rows[:, answer]}
        if self.options.form == "pairs":
            target = np.hstack((end, said, end))
            return {
                "source": np.hstack((given, end)),
                "target": target,
                "loss_mask": np.ones_like(target, bool),
            }
        row, closed = self.tokens[rows], self.options.problem != "recall"
        mask = np.tile(np.array([*answer, *[True] * closed]), (len(rows), 1))
        return {"tokens": np.hstack((row, end)) if closed else row, "loss_mask": mask}
