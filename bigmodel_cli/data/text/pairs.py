"""Pairs of a source and a target text, for encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import PADDING, Count, DatasetInfo
from bigmodel_cli.data.base import AnyDataOptions, Assets, DataSet, Say, Split
from bigmodel_cli.data.cache import cached_folder, key_of
from bigmodel_cli.data.expected import Expected
from bigmodel_cli.data.holdout import (
    HELD_OUT,
    FilesOptions,
    HeldOutOptions,
    ValFraction,
    files_of_splits,
    not_both,
    parts_of,
)
from bigmodel_cli.data.order import Ints, keys_of
from bigmodel_cli.data.text.pair_files import SIDES, PairSource, parallel, table
from bigmodel_cli.data.text.parts import token_dtype
from bigmodel_cli.data.text.ragged import Ragged, RaggedWriter
from bigmodel_cli.data.text.table_files import ENDINGS, Columns, Delimiter
from bigmodel_cli.data.text.table_survey import check_order, survey_table
from bigmodel_cli.data.text.tokenizer import ASSET, SOURCE_ASSET, Tokenizer
from bigmodel_cli.data.text.tokenizer_fit import (
    Corpora,
    TokenizerOptions,
    expected_size,
    fit_tokenizer,
)
from bigmodel_cli.data.trained_on import Hashes, as_hashes, hash_of
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.progress import reading

FORMAT = 3  # of the cached tokens
Files = Annotated[list[str], Field(min_length=1)]
Column = Annotated[int, Field(ge=0, le=10_000)] | str


class PairOptions(AnyDataOptions):
    """What all forms of pairs have in common."""

    context: Count = Field(
        128,
        description=(
            "longest side in tokens, its end included; longer training targets are left out"
        ),
    )
    tokenizer: TokenizerOptions = Field(
        description="text to tokens, fitted on both sides of the training pairs together"
    )
    source_tokenizer: TokenizerOptions | None = Field(
        None,
        description="the sources' own; each is then fitted on its side. Left out: one for both",
    )

    long_sources: Literal["leave_out", "cut"] = Field(
        "leave_out",
        description="what training does with a pair whose source is longer than context",
    )

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        return _open_pairs(self, base, say, assets, only)

    def longest(self) -> int:
        return self.context

    def fraction(self, base: Path) -> float:
        """The part of the training pairs to hold out."""
        return 0.0

    def expected(self, assets: Assets | None) -> Expected:
        own = self.source_tokenizer
        info = DatasetInfo(
            vocab_size=expected_size(self.tokenizer, assets),
            source_vocab_size=expected_size(own, assets, SOURCE_ASSET) if own is not None else None,
            context=self.context,
        )
        return Expected(info, frozenset(SIDES), longest=(self.context,) * 2)


class PairsOptions(HeldOutOptions, PairOptions):
    """Pairs of texts, parallel by line: files of sources and files of targets, plain or .gz."""

    paths = ("source", "target", "val_source", "val_target", "test_source", "test_target")
    test_data: ClassVar[str] = "data.test_source=[FILE] --set data.test_target=[FILE]"
    type: Literal["pairs"] = "pairs"
    val_fraction: ValFraction = Field(None, description=HELD_OUT.format("pairs"))
    source: Files = Field(
        description="files, globs or folders of the training sources, read in this order"
    )
    target: Files = Field(description="the same of the targets, with as many lines")
    val_source: list[str] = Field([], description="files for validation")
    val_target: list[str] = Field([], description="their targets")
    test_source: list[str] = Field([], description="files for the test split")
    test_target: list[str] = Field([], description="their targets")

    @model_validator(mode="after")
    def _both_sides(self) -> PairsOptions:
        for split in ("val", "test"):
            if bool(getattr(self, f"{split}_source")) != bool(getattr(self, f"{split}_target")):
                raise ValueError(f"give both {split}_source and {split}_target, or neither")
        not_both(self.val_source, "val_source", self.val_fraction)
        return self

    def named(self, base: Path) -> tuple[str, ...]:
        given = {"train": self.source, "val": self.val_source, "test": self.test_source}
        return tuple(split for split, names in given.items() if names)

    def sources(self, base: Path, only: str | None, say: Say) -> dict[str, PairSource]:
        """The splits, or what `only` one needs."""
        prefix = {"train": "", "val": "val_", "test": "test_"}
        named = {
            s: {n: (getattr(self, prefix[n] + s), f"data.{prefix[n]}{s}") for n in self.named(base)}
            for s in SIDES
        }
        files = {side: files_of_splits(named[side], base, only, say) for side in SIDES}
        return {n: parallel(n, {side: files[side][n] for side in SIDES}) for n in files["source"]}


class PairTableOptions(FilesOptions, PairOptions):
    """Pairs of texts in two columns: .tsv, .csv, .jsonl (each plain or .gz) or .parquet."""

    type: Literal["pair_table"] = "pair_table"
    val_fraction: ValFraction = Field(None, description=HELD_OUT.format("pairs"))
    train: Files = Field(
        description="files, globs or folders, read in this order; each by its ending"
    )
    val: list[str] = Field([], description="files for validation")
    test: list[str] = Field([], description="files for the test split")
    source: Column = Field(
        description=(
            "the column of what is read: a name (a.b for b in the object or struct a), or a number"
            " from 0"
        )
    )
    target: Column = Field(description="the column of what is written")
    header: bool | None = Field(
        None,
        description=(
            "whether the first row of .tsv and .csv has names; when left out: where a column is"
            " said by name, and a first row that looks like names is refused elsewhere"
        ),
    )
    delimiter: Delimiter = None

    def sources(self, base: Path, only: str | None, say: Say) -> dict[str, PairSource]:
        """The splits, or what `only` one needs."""
        sides = ("data.source", "data.target")
        columns = Columns((self.source, self.target), None, self.header, sides, self.delimiter)
        found = self.files(base, only, say, ENDINGS)
        check_order([survey_table(files, columns) for files in found.values()], columns)
        return {n: table(files, columns) for n, files in found.items()}


def _open_pairs(
    options: Any, base: Path, say: Say, assets: Assets | None, only: str | None
) -> DataSet:
    """The pairs as tokens; the tokenizers are fitted, or a checkpoint's when `assets` has one."""
    sources = options.sources(base, only, say)
    for note in [note for source in sources.values() for note in source.notes]:
        say(note)
    fraction = options.fraction(base)
    if fraction and "train" in sources:
        train, count = sources["train"], sources["train"].count()
        parts = parts_of(count, fraction, "pairs", None if only else say)
        sources |= {n: train.part(chosen, count) for n, chosen in parts.items()}
    tokenizers = _tokenizers(options, sources, say, assets)
    jsons = {side: tokenizer.to_json() for side, tokenizer in tokenizers.items()}
    description = [
        FORMAT,
        *(jsons[side].decode("utf-8") for side in SIDES),
        [[n, *s.digest] for n, s in sources.items()],
    ]

    def build(draft: Path) -> None:
        with reading("tokenizing", [path for source in sources.values() for path in source.hashes]):
            _write(draft, sources, tokenizers)
        for source in sources.values():
            source.check_unchanged()

    key = key_of(description)
    folder = cached_folder(
        "pairs",
        key,
        f"tokenizing {sum(s.characters for s in sources.values()):,} characters",
        say,
        build,
    )
    opened = {
        n: Pairs(folder, n, source, tokenizers, options, say)
        for n, source in sources.items()
        if only in (None, n)
    }
    splits: dict[str, Split] = dict(opened)
    separate = options.source_tokenizer is not None
    info = DatasetInfo(
        vocab_size=tokenizers["target"].vocab_size,
        source_vocab_size=tokenizers["source"].vocab_size if separate else None,
        context=options.context,
    )
    kept = {ASSET: jsons["target"], **({SOURCE_ASSET: jsons["source"]} if separate else {})}
    items: dict[str, Callable[[], Hashes]] = {
        n: partial(np.load, folder / f"{n}.items.npy") for n in sources
    }
    if "train" in opened:  # without the pairs that training leaves out
        items["train"] = opened["train"].items
    return DataSet(info, f"{key}-{options.context}", splits, kept, items, "pairs", fraction > 0)


def _tokenizers(
    options: PairOptions, sources: dict[str, PairSource], say: Say, assets: Assets | None
) -> dict[str, Tokenizer]:
    """The tokenizer of each side, fitted on the training pairs; one for both where they share
    it.
    """

    def fit(wanted: TokenizerOptions, side: str | None, asset: str) -> Tokenizer:
        first = (
            sources["train"] if "train" in sources else next(iter(sources.values()))
        )  # where a tokenizer is not fitted
        corpus, found = first.corpus(side)
        texts = Corpora(corpus, {"train": found})
        return fit_tokenizer(wanted, texts, say, assets, asset, ends="a side")

    if options.source_tokenizer is None:
        return dict.fromkeys(SIDES, fit(options.tokenizer, None, ASSET))
    return {
        "source": fit(options.source_tokenizer, "source", SOURCE_ASSET),
        "target": fit(options.tokenizer, "target", ASSET),
    }


class Pairs(Split):
    """{"source": (B, S), "target": (B, T + 1), "key": (B,)} int64, -1 after a row's end.

    A source is its tokens and the end token; a target begins with the end token too, as the start
    of generation. In training, pairs with an empty or too long side are left out; in evaluation
    every pair stays, cut where it is too long. `lengths` are of the longer side.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        source: PairSource,
        tokenizers: dict[str, Tokenizer],
        options: PairOptions,
        say: Say,
    ) -> None:
        self.pairs, self.longest = source, options.context - 1
        self.ends = {
            side: int(tokenizer.end_of_text or 0) for side, tokenizer in tokenizers.items()
        }
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

    def batch(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The pairs, each side padded to its longest."""
        rows = self.kept[samples]
        sides = {"source": self.side("source", rows, 0), "target": self.side("target", rows, 1)}
        return {**sides, KEY: keys_of(seed, epoch, samples)}

    def side(self, side: str, rows: Ints, first: int) -> Tensor:
        """(B, first + longest + 1): `first` end tokens, the tokens, the end token."""
        lengths = np.minimum(self.sides[side].lengths[rows], self.longest)
        taken = np.pad(
            self.sides[side].take(rows, lengths), ((0, 0), (first, 1)), constant_values=PADDING
        )
        taken[:, :first] = self.ends[side]
        taken[np.arange(len(rows)), first + lengths] = self.ends[side]
        return torch.from_numpy(taken)


def _write(draft: Path, sources: dict[str, PairSource], tokenizers: dict[str, Tokenizer]) -> None:
    """For each split and side the tokens of all texts; and the hash of each pair."""
    for split, source in sources.items():
        items: list[int] = []
        writers = {
            side: RaggedWriter(draft, f"{split}.{side}", token_dtype(tokenizers[side]))
            for side in SIDES
        }
        for pair in source.rows():
            for side, text in zip(SIDES, pair, strict=True):
                writers[side].write(tokenizers[side].encode_array(text) if text else [])
            items.append(hash_of(*(text.encode("utf-8") for text in pair)))
        for writer in writers.values():
            writer.finish()
        np.save(draft / f"{split}.items.npy", as_hashes(items))
