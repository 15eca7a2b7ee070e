"""Labelled or unlabelled rows of text: TSV, CSV, JSONL, Parquet and lines, as padded rows of
tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import PADDING, DatasetInfo, Probability
from bigmodel_cli.data.base import (
    Assets,
    DataSet,
    Say,
    Split,
    classes_in,
    count_classes,
    info_of,
    numbers_of,
    say_lacking,
)
from bigmodel_cli.data.cache import cached_folder, key_of
from bigmodel_cli.data.expected import Expected, LabelledOptions, numbered, unscaled
from bigmodel_cli.data.hashes import check_unchanged
from bigmodel_cli.data.holdout import (
    HELD_OUT,
    Mask,
    ValFraction,
    files_of_splits,
    fraction_of,
    hold_out,
    not_both,
    with_held_out,
)
from bigmodel_cli.data.order import Ints, keys_of
from bigmodel_cli.data.targets import Separator, check_kind, multi_hot, number_facts, target_name
from bigmodel_cli.data.text.corpus import Survey, Texts
from bigmodel_cli.data.text.parts import token_dtype
from bigmodel_cli.data.text.ragged import Ragged, RaggedWriter, fit_lengths, join_sides, leave_out
from bigmodel_cli.data.text.table_files import ENDINGS, Columns, Delimiter, Row, rows_of
from bigmodel_cli.data.text.table_survey import (
    TableSurvey,
    alike_labels,
    check_labels,
    check_order,
    sort_classes,
    survey_table,
)
from bigmodel_cli.data.text.tokenizer import ASSET, Tokenizer, UnknownCharacter
from bigmodel_cli.data.text.tokenizer_fit import (
    Corpora,
    TokenizerOptions,
    expected_size,
    fit_tokenizer,
)
from bigmodel_cli.data.text.word_ids import Words
from bigmodel_cli.data.trained_on import as_hashes, hash_of
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.progress import reading

FORMAT = 2  # of the cached tokens
ColumnOption = Annotated[int, Field(ge=0, le=10_000)] | str


class TableOptions(LabelledOptions):
    """Labelled text, one item a row: .tsv, .csv, .jsonl (each plain or .gz), .parquet; other files
    are lines of one column.
    """

    paths = ("train", "val", "test")
    test_data: ClassVar[str] = "data.test=[FILE]"
    type: Literal["table"] = "table"
    train: Annotated[list[str], Field(min_length=1)] = Field(
        description="files, globs or folders, read in this order; each by its ending"
    )
    val: list[str] = Field([], description="files for validation, instead of val_fraction")
    test: list[str] = Field([], description="files for the test split")
    val_fraction: ValFraction = Field(None, description=HELD_OUT.format("rows"))
    text: Annotated[list[ColumnOption], Field(min_length=1, max_length=2)] = Field(
        description=(
            "the column of text, or the two of a pair: names, or numbers from 0; a.b for b in the"
            " object or struct a"
        )
    )
    label: ColumnOption | None = Field(
        None, description="the column of labels; null where they are not there, or not to be learnt"
    )
    label_separator: Separator = None
    targets: list[ColumnOption] = Field(
        [], description="columns of numbers to learn, for task.type: regression"
    )
    header: bool | None = Field(
        None,
        description=(
            "whether the first row of .tsv, .csv and lines has names; when left out: where a column"
            " is said by name, and a first row that looks like names is refused elsewhere"
        ),
    )
    delimiter: Delimiter = None
    context: Annotated[int, Field(ge=4, le=10**9)] = Field(
        128,
        description=(
            "most tokens of a row, with its marks (T); a longer row is cut, of a pair the longer"
            " side first"
        ),
    )
    tokenizer: TokenizerOptions = Field(description="text to tokens, fitted on the training rows")
    token_dropout: Probability = Field(
        0.0,
        description=(
            "probability with which training leaves a token out, anew in each epoch (word dropout,"
            " Iyyer et al. 2015)"
        ),
    )
    words: bool = Field(False, description="say which word each token belongs to, for masked_lm")

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        return _open_table(self, base, say, assets, only)

    @model_validator(mode="after")
    def _consistent(self) -> TableOptions:
        not_both(self.val, "val", self.val_fraction)
        if self.label is not None and self.targets:
            raise ValueError(
                "targets and label: an item has numbers or a label; leave one out (null, [])"
            )
        if self.label is None and self.label_separator is not None:
            raise ValueError("label_separator: there is no label; say its column by label")
        if len(set(self.columns.target_names)) < len(self.targets):
            raise ValueError("targets: a column is named twice")
        if read := set(self.text) & {self.label, *self.targets}:
            raise ValueError(f"text: {read.pop()!r} is also what is to be learnt of a row")
        if self.header is False and any(
            isinstance(column, str) for _, column in self.columns.wanted
        ):
            raise ValueError(
                "header: false, and a column is given by name; say it by its number, from 0"
            )
        return self

    @property
    def files(self) -> dict[str, list[str]]:
        """The names of each split's files."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def splits(self, base: Path) -> tuple[str, ...]:
        return with_held_out((n for n, names in self.files.items() if names), self.val_fraction)

    def longest(self) -> int:
        return self.context

    def text_columns(self) -> int:
        return len(self.text)

    def expected(self, assets: Assets | None) -> Expected:
        if self.targets:
            info = unscaled(self.columns.target_names)
        else:
            info = numbered(self.expected_classes() if self.label is not None else 0)
        there = {"tokens": True, "types": len(self.text) > 1, "words": self.words}
        info = replace(
            info,
            vocab_size=expected_size(self.tokenizer, assets),
            context=self.context,
            label_sets=self.label_separator is not None,
        )
        names = {name for name, given in there.items() if given}
        if target := target_name(info):
            names.add(target)
        return Expected(info, frozenset(names), longest=(self.context,))

    @property
    def columns(self) -> Columns:
        """Which columns are read."""
        return Columns(
            tuple(self.text),
            self.label,
            self.header,
            delimiter=self.delimiter,
            separator=self.label_separator,
            targets=tuple(self.targets),
        )


def _open_table(
    options: TableOptions, base: Path, say: Say, assets: Assets | None, only: str | None
) -> DataSet:
    """The rows as tokens; the tokenizer is fitted, or a checkpoint's when `assets` has one."""
    named = {n: (names, f"data.{n}") for n, names in options.files.items() if names}
    files = files_of_splits(named, base, only, say, ENDINGS)
    surveys = {name: survey_table(paths, options.columns) for name, paths in files.items()}
    check_order(surveys.values(), options.columns)
    training = surveys["train"].labels if "train" in surveys else {}
    for note in [n for s in surveys.values() for n in s.notes] + alike_labels(training):
        say(note)
    before = info_of(assets)
    known = before if only is not None else None
    classes = _classes(options, surveys, known)
    fraction = fraction_of(options.val_fraction, "val" in named)
    held_out = None
    if fraction and "train" in files:
        held_out = hold_out(surveys["train"].rows, fraction, "rows", None if only else say)
    tokenizer = _tokenizer(options, files, surveys, held_out, fraction, say, assets)
    description = [FORMAT, tokenizer.to_json().decode("utf-8"), fraction, classes]
    description += [[name, s.digest] for name, s in surveys.items()]

    def build(draft: Path) -> None:
        with reading("tokenizing", [path for paths in files.values() for path in paths]):
            _write(draft, files, options.columns, held_out, classes, tokenizer)
        for name, paths in files.items():
            check_unchanged(paths, surveys[name].hashes)

    key = key_of(description)
    folder = cached_folder(
        "tables", key, f"tokenizing {sum(s.rows for s in surveys.values()):,} rows", say, build
    )
    there = [
        name for name in ("train", "val", "test") if os.path.exists(folder / f"{name}.labels.npy")
    ]
    train = np.load(folder / "train.labels.npy") if "train" in there else np.zeros(0, np.int64)
    info = DatasetInfo(
        vocab_size=tokenizer.vocab_size,
        context=options.context,
        classes=classes,
        class_counts=count_classes(train, classes) if "train" in there else (),
        label_sets=options.label_separator is not None,
        items=len(train) if options.label_separator is not None else 0,
        **number_facts(options.columns.target_names, train, before, known is not None, say),
    )
    check_kind(info, known)
    splits: dict[str, Split] = {
        n: Table(folder, n, options, tokenizer, info, say) for n in there if only in (None, n)
    }
    return DataSet(
        info,
        f"{key}-{options.context}",
        splits,
        {ASSET: tokenizer.to_json()},
        {name: partial(np.load, folder / f"{name}.items.npy") for name in there},
        "rows",
        fraction > 0,
    )


def _classes(
    options: TableOptions, surveys: dict[str, TableSurvey], known: DatasetInfo | None
) -> tuple[str, ...]:
    """The training rows' labels, or those of a checkpoint.

    Raises `DataError` or `SpecError` for an unknown label.
    """
    if options.label is None:
        return ()
    if known is not None:
        labels = [label for survey in surveys.values() for label in survey.labels]
        numbers_of(labels, known.classes, labels)
        return known.classes
    classes = sort_classes(surveys["train"].labels)
    check_labels(surveys, classes, options.label_separator is not None)
    return classes


def _tokenizer(
    options: TableOptions,
    files: dict[str, tuple[Path, ...]],
    surveys: dict[str, TableSurvey],
    held_out: Mask | None,
    fraction: float,
    say: Say,
    assets: Assets | None,
) -> Tokenizer:
    """The tokenizer, fitted on the training rows that are not held out."""

    def texts() -> Iterator[str]:
        rows = _kept(rows_of(files["train"], options.columns), held_out)
        return (text for row in rows for text in row.texts)

    described = {  # 2: there are ends
        n: Survey(s.digest, s.characters, 2, s.symbols, hashes=s.hashes) for n, s in surveys.items()
    }
    kept = Texts(files=files.get("train", ()), source=texts)
    tokenizer = fit_tokenizer(options.tokenizer, Corpora(kept, described, fraction), say, assets)
    if tokenizer.end_of_text is None:
        raise SpecError(
            "data.tokenizer: it has no mark for the end of a text, which ends a row; use bpe or"
            " bytes"
        )
    return tokenizer


def _kept(rows: Iterator[Row], held_out: Mask | None) -> Iterator[Row]:
    return (
        rows
        if held_out is None
        else (row for row, held in zip(rows, held_out, strict=True) if not held)
    )


def _write(
    draft: Path,
    files: dict[str, tuple[Path, ...]],
    columns: Columns,
    held_out: Mask | None,
    classes: tuple[str, ...],
    tokenizer: Tokenizer,
) -> None:
    """Write for each split and column of text the tokens of all rows, each row's target, and the
    hash of its texts.
    """
    numbers = {name: index for index, name in enumerate(classes)}
    dtype = token_dtype(tokenizer)
    for split, paths in files.items():
        held = held_out if split == "train" else None
        parts = (split,) if held is None else ("train", "val")
        writers = {
            p: [RaggedWriter(draft, f"{p}.{i}", dtype) for i in range(len(columns.text))]
            for p in parts
        }
        labels: dict[str, list[Any]] = {part: [] for part in parts}
        items: dict[str, list[int]] = {part: [] for part in parts}
        for index, row in enumerate(rows_of(paths, columns)):
            part = "val" if held is not None and held[index] else split
            for writer, text in zip(writers[part], row.texts, strict=True):
                writer.write(encode(tokenizer, text, row.place))
            if columns.targets:
                labels[part].append(row.numbers)
            elif row.labels is not None:
                labels[part].append(row.labels)
            else:
                labels[part].append(numbers[row.label] if row.label is not None else -1)
            items[part].append(hash_of(*(text.encode("utf-8") for text in row.texts)))
        for part in parts:
            for writer in writers[part]:
                writer.finish()
            if columns.separator is not None:
                learnt = multi_hot(labels[part], classes, "data.label")
            else:
                learnt = np.asarray(labels[part], np.float64 if columns.targets else np.int64)
            np.save(draft / f"{part}.labels.npy", learnt)
            np.save(draft / f"{part}.items.npy", as_hashes(items[part]))


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
    T): 0, from the second text on 1. Without labels one padding column (-1) is appended, because
    language-modelling tasks drop the last column. "words" (B, T) numbers each token's word where
    the options ask for it.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        options: TableOptions,
        tokenizer: Tokenizer,
        info: DatasetInfo,
        say: Say,
    ) -> None:
        dtype = token_dtype(tokenizer)
        self.sides = [
            Ragged.read(folder, f"{name}.{index}", dtype) for index in range(len(options.text))
        ]
        self.learnt = target_name(info)
        self.labels = np.load(folder / f"{name}.labels.npy") if self.learnt else None
        self.marks = marks(tokenizer)
        self.options = options
        self.words = Words(tokenizer) if options.words else None
        kept = fit_lengths([side.lengths for side in self.sides], room(options.context, self.sides))
        self.lengths = np.sum(kept, 0) + 1 + len(self.sides)
        whole = np.sum([side.lengths for side in self.sides], 0)
        cut = int((whole > room(options.context, self.sides)).sum())
        if cut:
            say(f"{cut:,} of {len(self):,} {name} rows are cut to {options.context} tokens")
        if self.labels is not None and info.classes:
            say_lacking(name, "row", classes_in(self.labels), info.classes, say)

    def __len__(self) -> int:
        return len(self.sides[0].lengths)

    def batch(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The rows, padded to the longest."""
        lengths = fit_lengths(
            [side.lengths[samples] for side in self.sides], room(self.options.context, self.sides)
        )
        taken = [side.take(samples, n) for side, n in zip(self.sides, lengths, strict=True)]
        if augment and self.options.token_dropout:
            p = self.options.token_dropout
            pairs = [leave_out(t, p, seed, epoch, samples, index) for index, t in enumerate(taken)]
            taken, lengths = [t for t, _ in pairs], [n for _, n in pairs]
        batch = as_batch(taken, lengths, self.marks, past=self.labels is None)
        batch[KEY] = keys_of(seed, epoch, samples)
        if self.words is not None:
            batch["words"] = self.words(batch["tokens"])
        if self.labels is not None and self.learnt is not None:
            batch[self.learnt] = torch.from_numpy(self.labels[samples])
        return batch


def marks(tokenizer: Tokenizer) -> tuple[int, int]:
    """The special tokens before a row and after each of its texts."""
    assert tokenizer.end_of_text is not None
    assert tokenizer.start_of_text is not None
    return tokenizer.start_of_text, tokenizer.end_of_text


def room(context: int, sides: Sequence[Any]) -> int:
    """Most tokens of text in a row, without special tokens."""
    return context - 1 - len(sides)


def as_batch(
    taken: list[Ints], lengths: list[Ints], ends: tuple[int, int], past: bool
) -> dict[str, Tensor]:
    """{"tokens", for a pair "types"}: (B, T), with one more column where `past`."""
    tokens, types = join_sides(taken, lengths, *ends)
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
    lengths = fit_lengths([side.lengths for side in sides], room(context, sides))
    rows = np.arange(len(items))
    return as_batch(
        [side.take(rows, n) for side, n in zip(sides, lengths, strict=True)],
        lengths,
        marks(tokenizer),
        False,
    )
