"""Labelled or unlabelled rows of text: TSV, CSV, JSONL, Parquet and lines, as padded rows of
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import DatasetInfo, Probability
from bigmodel_cli.data.base import Assets, DataSet, Say, Split, info_of
from bigmodel_cli.data.classes import count_classes, numbers_of
from bigmodel_cli.data.expected import Expected, LabelledOptions, numbered, unscaled
from bigmodel_cli.data.holdout import HELD_OUT, FilesOptions, Mask, ValFraction, hold_out
from bigmodel_cli.data.targets import Separator, check_kind, multi_hot, number_facts, target_name
from bigmodel_cli.data.text.corpus import ENDS, Survey, Texts
from bigmodel_cli.data.text.parts import token_dtype, tokenized
from bigmodel_cli.data.text.ragged import RowWriter
from bigmodel_cli.data.text.split import Table, encode
from bigmodel_cli.data.text.table_columns import Columns, Delimiter
from bigmodel_cli.data.text.table_files import ENDINGS, rows_of
from bigmodel_cli.data.text.table_survey import (
    TableSurvey,
    alike_labels,
    check_labels,
    check_order,
    sort_classes,
    survey_table,
)
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET
from bigmodel_cli.data.text.tokenizer_fit import (
    Corpora,
    TokenizerOptions,
    expected_size,
    fit_tokenizer,
)

FORMAT = 2  # of the cached tokens
ColumnOption = Annotated[int, Field(ge=0, le=10_000)] | str


class TableOptions(FilesOptions, LabelledOptions):
    """Labelled text, one item a row: .tsv, .csv, .jsonl (each plain or .gz), .parquet; other files
    are lines of one column.
    """

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
        files = self.files(base, only, say, ENDINGS)
        surveys = {name: survey_table(paths, self.columns) for name, paths in files.items()}
        check_order(surveys.values(), self.columns)
        training = surveys["train"].labels if "train" in surveys else {}
        for note in [n for s in surveys.values() for n in s.notes] + alike_labels(training):
            say(note)
        before = info_of(assets)
        known = before if only is not None else None
        classes = _classes(self, surveys, known)
        fraction = self.fraction(base)
        held_out = None
        if fraction and "train" in files:
            held_out = hold_out(surveys["train"].rows, fraction, "rows", None if only else say)
        tokenizer = _tokenizer(self, files, surveys, held_out, fraction, say, assets)
        description = [FORMAT, tokenizer.to_json().decode("utf-8"), fraction, classes]
        description += [[name, s.digest] for name, s in surveys.items()]
        what = f"tokenizing {sum(s.rows for s in surveys.values()):,} rows"
        hashes = [
            item
            for name, paths in files.items()
            for item in zip(paths, surveys[name].hashes, strict=True)
        ]
        key, folder, items = tokenized(
            "tables",
            description,
            what,
            hashes,
            say,
            lambda draft: _write(draft, files, self.columns, held_out, classes, tokenizer),
        )
        train = np.load(folder / "train.labels.npy") if "train" in items else np.zeros(0, np.int64)
        info = DatasetInfo(
            vocab_size=tokenizer.vocab_size,
            context=self.context,
            classes=classes,
            class_counts=count_classes(train, classes) if "train" in items else (),
            label_sets=self.label_separator is not None,
            items=len(train) if self.label_separator is not None else 0,
            **number_facts(self.columns.target_names, train, before, known is not None, say),
        )
        check_kind(info, known)
        splits: dict[str, Split] = {
            n: Table(folder, n, self, tokenizer, info, say) for n in items if only in (None, n)
        }
        return DataSet(
            info,
            f"{key}-{self.context}",
            splits,
            {ASSET: tokenizer.to_json()},
            items,
            "rows",
            fraction > 0,
        )

    @model_validator(mode="after")
    def _consistent(self) -> TableOptions:
        if self.label is not None and self.targets:
            raise ValueError(
                "targets and label: an item has numbers or a label; leave one out (null, [])"
            )
        if self.label is None and self.label_separator is not None:
            raise ValueError("label_separator: there is no label; give its column as label")
        if len(set(self.columns.target_names)) < len(self.targets):
            raise ValueError("targets: a column is named twice")
        if read := set(self.text) & {self.label, *self.targets}:
            raise ValueError(f"text: {read.pop()!r} is also the label or a target")
        if self.header is False and any(
            isinstance(column, str) for _, column in self.columns.wanted
        ):
            raise ValueError(
                "header: false, and a column is given by name; give its number, from 0"
            )
        return self

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
        there |= {name: True for name in (target_name(info),) if name is not None}
        names = frozenset(name for name, given in there.items() if given)
        return Expected(info, names, longest=(self.context,))

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
        rows = rows_of(files["train"], options.columns)
        kept = rows if held_out is None else compress(rows, ~held_out)
        return (text for row in kept for text in row.texts)

    described = {
        n: Survey(s.digest, s.characters, ENDS, s.symbols, hashes=s.hashes)
        for n, s in surveys.items()
    }
    kept = Texts(files=files.get("train", ()), source=texts)
    corpora = Corpora(kept, described, fraction)
    return fit_tokenizer(options.tokenizer, corpora, say, assets, ends="a row")


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
    dtypes = {str(i): token_dtype(tokenizer) for i in range(len(columns.text))}
    for split, paths in files.items():
        held = held_out if split == "train" else None
        parts = (split,) if held is None else ("train", "val")
        writers = {part: RowWriter(draft, part, dtypes) for part in parts}
        labels: dict[str, list[Any]] = {part: [] for part in parts}
        for index, row in enumerate(rows_of(paths, columns)):
            part = "val" if held is not None and held[index] else split
            tokens = [encode(tokenizer, text, row.place) for text in row.texts]
            writers[part].write(row.texts, tokens)
            label = numbers.get(row.label or "", -1) if row.labels is None else row.labels
            labels[part].append(row.numbers or label)
        for part in parts:
            writers[part].finish()
            if columns.separator is not None:
                learnt = multi_hot(labels[part], classes, "data.label")
            else:
                learnt = np.asarray(labels[part], np.float64 if columns.targets else np.int64)
            np.save(draft / f"{part}.labels.npy", learnt)
