"""Synthetic problems, for trying a structure in seconds without a file: copying, sorting, recall,
parity, sums.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import DatasetInfo, Seed
from bigmodel_cli.console import counted
from bigmodel_cli.data.base import AnyDataOptions, Assets, DataSet, Say, Split
from bigmodel_cli.data.cache import key_of
from bigmodel_cli.data.classes import count_classes
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.problems import FORMAT, PROBLEMS, Rows, Synthetic
from bigmodel_cli.data.text.own_tokenizers import SymbolTokenizer
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET, read_tokenizer
from bigmodel_cli.errors import CheckpointError, DataError, SpecError

Length = Annotated[int, Field(gt=0, le=100_000)]
Samples = Annotated[int, Field(gt=0, le=10**7)]


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
        tokenizer, tokens = _tokens(self, assets)
        wanted = {"train": self.samples, "val": self.val_samples, "test": self.test_samples}
        numbers = _divided(self, wanted)
        few = [
            f"{len(n):,} of {wanted[s]:,} {s} samples"
            for s, (n, _) in numbers.items()
            if len(n) < wanted[s]
        ]
        if few and only is None:
            say(
                f"there are {', '.join(few)}: {self.problem} has no more different samples of that"
                " length, and splits share none"
            )
        splits = {
            s: Synthetic(self, tokenizer, tokens, *numbers[s]) for s in numbers if only in (None, s)
        }
        classes = tuple(map(str, range(self.count))) if self.form == "labels" else ()
        counted = classes and "train" in splits
        counts = count_classes(splits["train"].labels(), classes) if counted else ()
        opened: dict[str, Split] = dict(splits)
        return DataSet(
            DatasetInfo(
                vocab_size=tokenizer.vocab_size,
                context=self.longest(),
                classes=classes,
                class_counts=counts,
            ),
            key_of([FORMAT, self.model_dump(mode="json"), tokenizer.to_json().decode("utf-8")]),
            opened,
            {ASSET: tokenizer.to_json()},
            {name: split.items for name, split in splits.items()},
            "samples",
            False,
        )

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
        """Samples of one length by their numbers (B,)."""
        return PROBLEMS[self.problem].samples(numbers, length, self.count, self.seed)


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
        space, total = PROBLEMS[options.problem].space(length, options.count), sum(shares.values())
        if total > space:
            least = {s: min(n, 1) for s, n in shares.items()}
            shares = {s: max(least[s], space * n // total) for s, n in shares.items()}
            if "train" in shares:
                shares["train"] += space - sum(shares.values())
        if sum(shares.values()) > space or (
            total > space and any(n < least[s] for s, n in shares.items())
        ):
            raise SpecError(
                f"data.length: {options.problem} has {counted(space, 'different sample')} of"
                f" length {length}, and splits share none; make data.length, data.min_length or"
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
