"""Pairs of a source and a target text, for encoder-decoders."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, DatasetInfo
from bigmodel_cli.data.base import AnyDataOptions, Assets, DataSet, Say, Split
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
from bigmodel_cli.data.text.pair_files import SIDES, PairSource, parallel, table
from bigmodel_cli.data.text.parts import token_dtype, tokenized
from bigmodel_cli.data.text.ragged import RowWriter
from bigmodel_cli.data.text.split import Pairs, encode
from bigmodel_cli.data.text.table_columns import Columns, Delimiter
from bigmodel_cli.data.text.table_files import ENDINGS
from bigmodel_cli.data.text.table_survey import check_order, survey_table
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET, SOURCE_ASSET
from bigmodel_cli.data.text.tokenizer_fit import (
    Corpora,
    TokenizerOptions,
    expected_size,
    fit_tokenizer,
)

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
        sources = self.sources(base, only, say)
        for note in [note for source in sources.values() for note in source.notes]:
            say(note)
        fraction = self.fraction(base)
        if fraction and "train" in sources:
            train, count = sources["train"], sources["train"].count()
            parts = parts_of(count, fraction, "pairs", None if only else say)
            sources |= {n: train.part(chosen, count) for n, chosen in parts.items()}
        tokenizers = _tokenizers(self, sources, say, assets)
        jsons = {side: tokenizer.to_json() for side, tokenizer in tokenizers.items()}
        description = [
            FORMAT,
            *(jsons[side].decode("utf-8") for side in SIDES),
            [[n, *s.digest] for n, s in sources.items()],
        ]

        what = f"tokenizing {sum(s.characters for s in sources.values()):,} characters"
        hashes = [item for source in sources.values() for item in source.hashes.items()]
        key, folder, items = tokenized(
            "pairs", description, what, hashes, say, lambda d: _write(d, sources, tokenizers)
        )
        opened = {
            n: Pairs(folder, n, source, tokenizers, self, say)
            for n, source in sources.items()
            if only in (None, n)
        }
        splits: dict[str, Split] = dict(opened)
        separate = self.source_tokenizer is not None
        info = DatasetInfo(
            vocab_size=tokenizers["target"].vocab_size,
            source_vocab_size=tokenizers["source"].vocab_size if separate else None,
            context=self.context,
        )
        kept = {ASSET: jsons["target"], **({SOURCE_ASSET: jsons["source"]} if separate else {})}
        if "train" in opened:  # without the pairs that training leaves out
            items["train"] = opened["train"].items
        return DataSet(info, f"{key}-{self.context}", splits, kept, items, "pairs", fraction > 0)

    @abstractmethod
    def sources(self, base: Path, only: str | None, say: Say) -> dict[str, PairSource]:
        """The splits, or what `only` one needs."""

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
        sides = ("data.source", "data.target")
        columns = Columns((self.source, self.target), None, self.header, sides, self.delimiter)
        found = self.files(base, only, say, ENDINGS)
        check_order([survey_table(files, columns) for files in found.values()], columns)
        return {n: table(files, columns) for n, files in found.items()}


def _tokenizers(
    options: PairOptions, sources: dict[str, PairSource], say: Say, assets: Assets | None
) -> dict[str, Tokenizer]:
    """The tokenizer of each side, fitted on the training pairs; one for both where they share
    it.
    """

    def fit(wanted: TokenizerOptions, side: str | None, asset: str) -> Tokenizer:
        # where a tokenizer is not fitted
        first = sources["train"] if "train" in sources else next(iter(sources.values()))
        corpus, found = first.corpus(side)
        texts = Corpora(corpus, {"train": found})
        return fit_tokenizer(wanted, texts, say, assets, asset, ends="a side")

    if options.source_tokenizer is None:
        return dict.fromkeys(SIDES, fit(options.tokenizer, None, ASSET))
    return {
        "source": fit(options.source_tokenizer, "source", SOURCE_ASSET),
        "target": fit(options.tokenizer, "target", ASSET),
    }


def _write(draft: Path, sources: dict[str, PairSource], tokenizers: dict[str, Tokenizer]) -> None:
    """For each split and side the tokens of all texts; and the hash of each pair."""
    dtypes = {side: token_dtype(tokenizers[side]) for side in SIDES}
    for split, source in sources.items():
        writer = RowWriter(draft, split, dtypes)
        for pair in source.rows():
            texts = zip(SIDES, pair, strict=True)
            writer.write(pair, [encode(tokenizers[s], text, "the text") for s, text in texts])
        writer.finish()
