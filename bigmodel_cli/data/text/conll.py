"""Sentences with a tag for each word: CoNLL's columns, a word a line, and JSON Lines with lists."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import counted
from bigmodel_cli.data.base import Assets, DataSet, Piece, Say, Split, info_of
from bigmodel_cli.data.cache import key_of
from bigmodel_cli.data.classes import numbers_of
from bigmodel_cli.data.holdout import HELD_OUT, FilesOptions, ValFraction, parts_of
from bigmodel_cli.data.reading import checked_text, is_json_lines, json_rows, lines, lookup
from bigmodel_cli.data.text.corpus import ENDS, Survey, Texts
from bigmodel_cli.data.text.pieces import Pieces, Tagged
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET
from bigmodel_cli.data.text.tokenizer_fit import Corpora, TokenizerOptions, fit_tokenizer
from bigmodel_cli.data.trained_on import Hashes, as_hashes, hash_of
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.progress import reading

FORMAT = 1
ENDINGS = tuple(
    f".{name}{packed}"
    for name in ("conll", "conllu", "iob", "iob2", "bio", "tsv", "txt", "jsonl")
    for packed in ("", ".gz")
)
DOCUMENT = "-DOCSTART-"
COMMENT = re.compile(r"#\s*([\w.:-]+\s*=\s|newdoc|newpar|id\s)")
"""A line of CoNLL-U or MultiCoNER with a comment on the next sentence."""
RANGE = re.compile(r"\d+[-.]\d+")
"""The number of a CoNLL-U line that is not a word: several words written as one, or an empty node.
"""
Column = Annotated[int, Field(ge=-1000, le=1000)] | str
Files = list[str]


class Sentence(NamedTuple):
    """Words and their tags; `place` is their position."""

    place: str
    words: list[str]
    tags: list[str]


class CoNLLOptions(FilesOptions):
    """A tag for each word: CoNLL's columns (a word a line, a blank line between sentences), or
    .jsonl with lists; plain or .gz.
    """

    type: Literal["conll"] = "conll"
    train: Annotated[Files, Field(min_length=1)] = Field(
        description="files, globs or folders, read in this order"
    )
    val: Files = Field([], description="files for validation, instead of val_fraction")
    test: Files = Field([], description="files for the test split")
    val_fraction: ValFraction = Field(None, description=HELD_OUT.format("sentences"))
    words: Column | None = Field(
        None,
        description=(
            "where words stand: a column from 0 (0 where left out), or the key in .jsonl rows"
            " (tokens)"
        ),
    )
    tags: Column | None = Field(
        None,
        description=(
            "where tags stand: a column, the last one (-1) where left out, or the key in .jsonl"
            " rows (tags)"
        ),
    )
    context: Annotated[int, Field(ge=4, le=10**9)] = Field(
        128, description="most tokens of a sentence, with its marks (T); what is longer is cut"
    )
    tokenizer: TokenizerOptions = Field(
        description="words to tokens, fitted on the training sentences"
    )
    piece: Piece = Field(
        "first",
        description=(
            "the token of a word that bears its tag; last for a decoder, which has not read the"
            " others before"
        ),
    )

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        files = self.files(base, only, say, ENDINGS)
        skipped = Counter[str]()
        with reading("reading sentences", [path for paths in files.values() for path in paths]):
            found = {
                n: [s for path in paths for s in self.sentences(path, skipped)]
                for n, paths in files.items()
            }
        for what, count in skipped.items():
            say(f"left out: {count:,} {what}")
        for name in [name for name, sentences in found.items() if not sentences]:
            raise DataError(f"data.{name}: no sentence in {files[name][0]}")
        classes = _classes(found, info_of(assets) if only is not None else None)
        content = ["\0".join([*s.words, "", *s.tags, "\n"]) for own in found.values() for s in own]
        fraction = self.fraction(base)
        if fraction and "train" in found:
            whole = found["train"]
            parts = parts_of(len(whole), fraction, "sentences", None if only else say)
            found |= {n: [whole[i] for i in chosen.tolist()] for n, chosen in parts.items()}
        tokenizer = _tokenizer(self, found, say, assets)
        pieces = Pieces(tokenizer, self.context, self.piece)
        splits = {
            n: Tagged(s, n, pieces, classes, say) for n, s in found.items() if only in (None, n)
        }
        counts = splits["train"].counts(len(classes)) if "train" in splits else ()
        opened: dict[str, Split] = dict(splits)
        return DataSet(
            DatasetInfo(
                vocab_size=tokenizer.vocab_size,
                context=self.context,
                classes=classes,
                class_counts=counts,
                tagged=True,
            ),
            key_of(
                [
                    FORMAT,
                    hashlib.sha256("".join(content).encode()).hexdigest(),
                    tokenizer.to_json().decode("utf-8"),
                    fraction,
                    classes,
                    self.context,
                    self.piece,
                ]
            ),
            opened,
            {ASSET: tokenizer.to_json()},
            {n: partial(_items, s) for n, s in found.items()},
            "sentences",
            fraction > 0,
        )

    def longest(self) -> int:
        return self.context

    def tagged_piece(self) -> Piece:
        return self.piece

    def sentences(self, path: Path, skipped: Counter[str]) -> Iterator[Sentence]:
        """The sentences of a file.

        Raises `DataError` naming an invalid line; `skipped` counts ignored lines by kind.
        """
        if is_json_lines(path):
            yield from (self.of_lists(row, place) for place, row in json_rows(path))
            return
        found, width = Sentence(f"{path}:1", [], []), 0
        for number, line in enumerate(lines(path), 1):
            line = line.rstrip("\t ")  # no other blanks, which may be within words
            fields = line.split("\t") if "\t" in line else [f for f in line.split(" ") if f]
            if not line.strip() or fields[0] == DOCUMENT:
                if found.words:
                    yield found
                found = Sentence(f"{path}:{number + 1}", [], [])
            elif not found.words and "\t" not in line and COMMENT.match(line):
                skipped["comments"] += 1
            elif "\t" in line and RANGE.fullmatch(fields[0]) and self.words not in (None, 0):
                skipped["CoNLL-U lines that are no word of their own"] += 1
            else:
                width = width or len(fields)
                self.add(found, fields, width, f"{path}:{number}")
        if found.words:
            yield found

    def add(self, sentence: Sentence, fields: list[str], width: int, place: str) -> None:
        """Add a word, from the fields of its line."""
        if len(fields) != width:
            raise DataError(
                f"{place}: {counted(len(fields), 'column')}, and the lines before have {width};"
                " tabs allow blanks in words"
            )
        wanted = (0 if self.words is None else self.words, -1 if self.tags is None else self.tags)
        at: list[int] = []
        for option, column, out in zip(
            ("words", "tags"), wanted, (sentence.words, sentence.tags), strict=True
        ):
            if not isinstance(column, int):
                raise SpecError(
                    f"data.{option}: {column!r} is a key of .jsonl rows, and {place} has columns;"
                    " give a number"
                )
            if not -width <= column < width or width < 2:
                raise DataError(
                    f"{place}: {counted(width, 'column')}, and data.{option} is column {column};"
                    " words need their tags"
                )
            if not fields[column].strip():
                raise DataError(f"{place}: column {column} (data.{option}) is empty")
            out.append(fields[column].strip())
            at.append(column % width)
        if at[0] == at[1]:
            raise SpecError(
                f"data.words and data.tags are both column {at[0]} of {place}; tags stand beside"
                " their words"
            )

    def of_lists(self, row: dict[str, Any], place: str) -> Sentence:
        """The sentence of a row of JSON."""
        lists = []
        keys = (
            "tokens" if self.words is None else self.words,
            "tags" if self.tags is None else self.tags,
        )
        for option, key in zip(("words", "tags"), keys, strict=True):
            try:
                values = lookup(row, str(key))
            except KeyError:
                raise DataError(f"{place}: no key {key!r}; name it with data.{option}") from None
            if not isinstance(values, list) or not all(
                isinstance(value, str) and value.strip() for value in values
            ):
                raise DataError(
                    f"{place}: {key!r} is not a list of names; write each as text, tags by name"
                    " (B-PER), not number"
                )
            lists.append([checked_text(value, place).strip() for value in values])
        words, tags = lists
        if len(words) != len(tags) or not words:
            raise DataError(
                f"{place}: {len(words)} words and {len(tags)} tags; each word needs one"
            )
        return Sentence(place, words, tags)


def _classes(found: dict[str, list[Sentence]], known: DatasetInfo | None) -> tuple[str, ...]:
    """The tags of all splits, or those of a checkpoint.

    Raises `SpecError` for one that it does not know.
    """
    every = sorted({tag for own in found.values() for sentence in own for tag in sentence.tags})
    if known is None and len(every) < 2:
        raise DataError(
            f"data.tags: every word has the tag {every[0]!r}; is it the right column? Two or more"
            " are needed"
        )
    if known is not None:
        numbers_of(every, known.classes, every)
        return known.classes
    return tuple(every)


def _items(sentences: Sequence[Sentence]) -> Hashes:
    """(N,) the hash of each sentence's words."""
    return as_hashes(hash_of(*(word.encode() for word in sentence.words)) for sentence in sentences)


def _tokenizer(
    options: CoNLLOptions, found: dict[str, list[Sentence]], say: Say, assets: Assets | None
) -> Tokenizer:
    """The tokenizer, fitted on the training sentences that are not held out."""
    texts = {
        name: [" ".join(sentence.words) for sentence in sentences]
        for name, sentences in found.items()
    }
    surveys = {
        name: Survey(key_of(own), sum(map(len, own)), ENDS, "".join(sorted({*" ", *"".join(own)})))
        for name, own in texts.items()
    }
    corpus = Texts(files=(), source=lambda: iter(texts.get("train", [])))
    texts_of = Corpora(corpus, surveys)
    return fit_tokenizer(options.tokenizer, texts_of, say, assets, ends="a sentence")
