"""Synthetic problems, for trying a structure in seconds without a file: copying, sorting, recall,
parity, sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import PADDING, DatasetInfo, Seed
from bigmodel_cli.data.base import AnyDataOptions, Assets, DataSet, Say, Split, count_classes
from bigmodel_cli.data.cache import key_of
from bigmodel_cli.data.order import Ints, draw, keys_of, permute
from bigmodel_cli.data.text.tokenizer import ASSET, SymbolTokenizer, Tokenizer, read_tokenizer
from bigmodel_cli.data.trained_on import Hashes
from bigmodel_cli.draw import KEY, mix
from bigmodel_cli.draw import key_of as seeded
from bigmodel_cli.errors import CheckpointError, DataError, SpecError
from bigmodel_cli.lazy import Tensor, torch

FORMAT = 1
MOST = 1 << 60
"""Most samples that are distinguished by number; beyond those, the remaining symbols are drawn."""
REST = 3  # stream of their random numbers
AT_ONCE = 1 << 16  # samples, when all are hashed
Length = Annotated[int, Field(gt=0, le=100_000)]
Samples = Annotated[int, Field(gt=0, le=10**7)]
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


class SyntheticOptions(AnyDataOptions):
    """Problems made by rule, without any file; the splits share no sample.

    The loss is that of the answer alone.
    """

    test_data: ClassVar[str] = "data.test_samples=1000"
    type: Literal["synthetic"] = "synthetic"
    problem: Literal[
        "copy", "reverse", "sort", "recall", "parity", "running_parity", "modular_sum"
    ] = Field(
        description=(
            "copy, reverse, sort: `3 1 2 = 1 2 3`; recall: pairs of keys and values, then each key"
            " before its value, as in MQAR (Arora et al. 2023); parity: of bits, or of all bits up"
            " to each; modular_sum: `a + b = c`, modulo symbols"
        )
    )
    form: Literal["text", "pairs", "labels"] = Field(
        "text",
        description=(
            "text with its answer, for causal_lm; pairs, for seq2seq; or an answer as label, for"
            " classification"
        ),
    )
    length: Length = Field(
        description="symbols of a training sample; pairs for recall, terms for modular_sum"
    )
    min_length: Length | None = Field(
        None, description="shortest training sample: lengths from this on are as frequent"
    )
    val_length: Length | None = Field(
        None, description="of each validation sample, instead of those of training"
    )
    test_length: Length | None = Field(
        None, description="of each test sample: longer ones test length generalisation"
    )
    symbols: Annotated[int, Field(ge=2, le=100_000)] | None = Field(
        None,
        description=(
            "different symbols: 10 where left out; for recall 64, half of them keys; for"
            " modular_sum the modulus, 97"
        ),
    )
    samples: Samples = Field(10_000, description="training samples")
    val_samples: Samples = Field(1000, description="validation samples")
    test_samples: Samples = Field(1000, description="test samples")
    seed: Seed = Field(0, description="chooses the samples, whatever train.seed is")

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        return _open_synthetic(self, base, say, assets, only)

    @model_validator(mode="after")
    def _possible(self) -> SyntheticOptions:
        if (self.min_length or 0) > self.length:
            raise ValueError(f"min_length {self.min_length} is more than length {self.length}")
        if self.problem in ("parity", "running_parity") and self.symbols not in (None, 2):
            raise ValueError(f"symbols: {self.symbols}: parity is of bits; leave symbols out")
        longest = max(self.length, self.val_length or 0, self.test_length or 0)
        if self.problem == "recall" and longest > self.count // 2:
            raise ValueError(
                f"symbols: {self.count}: half of them are keys, fewer than {longest} pairs; give"
                " more"
            )
        if self.form == "labels" and self.problem not in ("parity", "modular_sum"):
            raise ValueError(
                "form: labels is for answers of one symbol (parity, modular_sum), and not for"
                f" {self.problem}"
            )
        return self

    @property
    def count(self) -> int:
        """The number of symbols."""
        return self.symbols or PROBLEMS[self.problem].symbols

    def splits(self, base: Path) -> tuple[str, ...]:
        return ("train", "val", "test")

    def lengths(self) -> dict[str, range]:
        """The lengths of each split's samples."""
        train = range(self.min_length or self.length, self.length + 1)
        own = {"val": self.val_length, "test": self.test_length}
        return {
            "train": train,
            **{s: train if n is None else range(n, n + 1) for s, n in own.items()},
        }

    def longest(self) -> int:
        return max(self.width(lengths[-1]) for lengths in self.lengths().values())

    def width(self, length: int) -> int:
        """The tokens of a sample of some length that the model sees at once, on the longer side of
        a pair.
        """
        row, answer = self.rows(np.zeros(1, np.int64), length)
        whole, answered = int(row.shape[1]), int(answer.sum())
        if self.form == "text":
            return whole - (self.problem == "recall")
        return max(whole - answered, answered) + 1 if self.form == "pairs" else whole - answered + 2

    def rows(self, numbers: Ints, length: int) -> Rows:
        """Samples of one length by their numbers (B,), each below `space`."""
        problem = PROBLEMS[self.problem]
        choices = problem.choices(length, self.count)
        told = _told_apart(choices)
        x = np.empty((len(numbers), len(choices)), np.int64)
        rest = numbers = permute(numbers, math.prod(choices[:told]), (self.seed, length))
        for place, choice in enumerate(choices[:told]):
            rest, x[:, place] = np.divmod(rest, choice)
        drawn = draw(self.seed, length, numbers, REST, len(choices) - told)
        x[:, told:] = drawn * np.array(choices[told:])
        return problem.rows(x, self.count)

    def space(self, length: int) -> int:
        """How many samples of some length are distinguished."""
        choices = PROBLEMS[self.problem].choices(length, self.count)
        return math.prod(choices[: _told_apart(choices)])


def _told_apart(choices: list[int]) -> int:
    """How many of the first numbers of a sample have at most `MOST` values together."""
    product = 1
    for place, choice in enumerate(choices):
        product *= choice
        if product > MOST:
            return place
    return len(choices)


def _open_synthetic(
    options: SyntheticOptions, base: Path, say: Say, assets: Assets | None, only: str | None
) -> DataSet:
    """The problem's samples; their symbols are a checkpoint's where `assets` has a tokenizer."""
    tokenizer, tokens = _tokens(options, assets)
    wanted = {"train": options.samples, "val": options.val_samples, "test": options.test_samples}
    numbers = _divided(options, wanted)
    few = [
        f"{len(n):,} of {wanted[s]:,} {s} samples"
        for s, (n, _) in numbers.items()
        if len(n) < wanted[s]
    ]
    if few and only is None:
        say(
            f"there are {', '.join(few)}: {options.problem} has no more different ones that short,"
            " and splits share none"
        )
    splits = {
        s: Synthetic(options, tokenizer, tokens, *numbers[s]) for s in numbers if only in (None, s)
    }
    classes = tuple(map(str, range(options.count))) if options.form == "labels" else ()
    counts = (
        count_classes(splits["train"].labels(), classes) if classes and "train" in splits else ()
    )
    opened: dict[str, Split] = dict(splits)
    return DataSet(
        DatasetInfo(
            vocab_size=tokenizer.vocab_size,
            context=options.longest(),
            classes=classes,
            class_counts=counts,
        ),
        key_of([FORMAT, options.model_dump(mode="json"), tokenizer.to_json().decode("utf-8")]),
        opened,
        {ASSET: tokenizer.to_json()},
        {name: split.items for name, split in splits.items()},
        "samples",
        False,
    )


def _tokens(options: SyntheticOptions, assets: Assets | None) -> tuple[Tokenizer, Ints]:
    """The tokenizer and the token of each symbol.

    Raises `SpecError` for a symbol for which a checkpoint's has no token.
    """
    names = PROBLEMS[options.problem].names(options.count)
    if assets is None or ASSET not in assets:
        return SymbolTokenizer(names), np.arange(len(names))
    tokenizer = read_tokenizer(bytes(assets[ASSET]), f"{ASSET} of the checkpoint", CheckpointError)
    tokens = []
    for name in names:
        try:
            found = tokenizer.encode(name)
        except DataError:
            found = []
        if len(found) != 1 or tokenizer.decode(found) != name or tokenizer.end_of_text is None:
            raise SpecError(
                f"data.problem: {options.problem} of {options.count} symbols has the symbol"
                f" {name!r}, for which the checkpoint's tokenizer has no token; take fewer symbols,"
                " or train from the first weights"
            )
        tokens += found
    return tokenizer, np.array(tokens)


def _divided(options: SyntheticOptions, wanted: dict[str, int]) -> dict[str, tuple[Ints, Ints]]:
    """(numbers (N,), lengths (N,)) of each split's samples: equally many of each length, where
    there are enough.

    Where there are fewer samples than wanted, each split gets its share. Raises `SpecError` for an
    empty share.
    """
    lengths = options.lengths()
    found: dict[str, list[tuple[int, int, int]]] = {split: [] for split in wanted}
    for length in sorted({n for own in lengths.values() for n in own}):
        shares = {
            s: wanted[s] // len(own) + (length - own[0] < wanted[s] % len(own))
            for s, own in lengths.items()
            if length in own
        }
        space, total = options.space(length), sum(shares.values())
        if total > space:
            least = {s: min(n, 1) for s, n in shares.items()}
            shares = {s: max(least[s], space * n // total) for s, n in shares.items()}
            if "train" in shares:
                shares["train"] += space - sum(shares.values())
        if sum(shares.values()) > space or (
            total > space and any(n < least[s] for s, n in shares.items())
        ):
            raise SpecError(
                f"data.length: {options.problem} has {space} different sample(s) of length"
                f" {length}, and splits share none; make data.length, data.min_length or"
                " data.symbols larger"
            )
        ends = np.cumsum([0, *shares.values()]).tolist()
        for split, (first, end) in zip(shares, pairwise(ends), strict=True):
            found[split].append((length, first, end))
    return {
        split: (
            np.concatenate([np.arange(first, end) for _, first, end in parts]),
            np.concatenate([np.full(end - first, length) for length, first, end in parts]),
        )
        for split, parts in found.items()
    }


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
        options: SyntheticOptions,
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
        """(places among the samples, those as `SyntheticOptions.rows` has them) for each length."""
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

    def batch(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
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
        return {**batch, KEY: keys_of(seed, epoch, samples)}

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
