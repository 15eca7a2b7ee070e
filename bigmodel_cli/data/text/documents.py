"""Running text for language models: windows of a token stream."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, DatasetInfo
from bigmodel_cli.data.base import Assets, DataSet, Say, Split
from bigmodel_cli.data.expected import Expected
from bigmodel_cli.data.holdout import TENTH, HeldOutOptions, ValFraction, files_of_splits, not_both
from bigmodel_cli.data.reading import plain_name
from bigmodel_cli.data.shards.packing import Packable, slices
from bigmodel_cli.data.text.corpus import Corpus, standard_library, survey
from bigmodel_cli.data.text.parts import (
    Part,
    Windows,
    single,
    tell_part,
    token_dtype,
    tokenized,
    training_part,
    write_tokens,
)
from bigmodel_cli.data.text.tokenizer_files import ASSET
from bigmodel_cli.data.text.tokenizer_fit import (
    BytesOptions,
    Corpora,
    TokenizerOptions,
    expected_size,
    fit_tokenizer,
)
from bigmodel_cli.data.text.word_ids import Words
from bigmodel_cli.errors import DataError, SpecError

FORMAT = 3  # of the cached tokens
TABLES = (".json", ".ndjson", ".csv", ".tsv")
"""Endings of files that are not running text."""


class _TextOptions(HeldOutOptions):
    test_data: ClassVar[str] = "data.test_files=[FILE]"
    context: Count = Field(description="tokens that the model sees at once (T)")
    tokenizer: TokenizerOptions = Field(BytesOptions(), description="text to tokens")
    val_fraction: ValFraction = Field(
        None,
        description=(
            "part of the text held out for validation: documents at random, of a single one its"
            " tail; left out: a tenth where no validation files are named; 0: none"
        ),
    )
    words: bool = Field(False, description="say which word each token belongs to, for masked_lm")
    isolate: bool = Field(
        False,
        description=(
            "a token sees only its own document, where several stand in a window; for causal_lm"
        ),
    )

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        corpora = self.corpora(base, only, say)
        for path in [path for corpus in corpora.values() for path in corpus.files]:
            if plain_name(path).endswith(TABLES):
                say(
                    f"warning: {path}: read as running text, its marks and separators too; rows of"
                    " objects are read from .jsonl, columns by data.type: table"
                )
        surveys = {name: survey(corpus) for name, corpus in corpora.items()}
        for name, found in surveys.items():
            if not found.characters:
                raise DataError(
                    f"the corpus is empty: {', '.join(str(f) for f in corpora[name].files[:3])}"
                )
        fraction = self.fraction(base)
        own = {}
        if fraction and "train" in surveys:
            own["train"] = training_part(surveys["train"].lengths, fraction)
            if only is None:
                tell_part(surveys["train"], own["train"], say)
        parts = [Part(n, c, own.get(n), single(c)) for n, c in corpora.items()]
        train = next((part for part in parts if part.name == "train"), None)
        tokenizer = fit_tokenizer(self.tokenizer, Corpora(train, surveys, fraction), say, assets)
        description = [FORMAT, tokenizer.to_json().decode("utf-8"), fraction]
        description += [[name, s.digest, single(corpora[name])] for name, s in surveys.items()]

        what = f"tokenizing {sum(s.characters for s in surveys.values()):,} characters"
        hashes = [
            item
            for name, corpus in corpora.items()
            for item in zip(corpus.files, surveys[name].hashes, strict=True)
        ]
        key, folder, items = tokenized(
            "tokens", description, what, hashes, say, lambda d: write_tokens(d, parts, tokenizer)
        )
        dtype = token_dtype(tokenizer)
        words = Words(tokenizer) if self.words else None
        end = tokenizer.end_of_text if self.isolate else None
        if self.isolate and end is None:
            raise SpecError(
                "data.isolate: the text is one document, or its tokenizer has no mark for the end"
                " of one"
            )
        splits: dict[str, Split] = {
            n: Windows(folder / f"{n}.bin", dtype, self.context, n, words, end)
            for n in items
            if only in (None, n)
        }
        return DataSet(
            DatasetInfo(vocab_size=tokenizer.vocab_size, context=self.context),
            f"{key}-{self.context}",
            splits,
            {ASSET: tokenizer.to_json()},
            items,
            "blocks of lines",
            fraction > 0,
        )

    def packable(self, *, base: Path, say: Say) -> Packable:
        """Slices of the tokens, as they are in the cache."""
        data = self.open(base=base, say=say)
        splits = {
            name: slices(data.split(name).stream(), f"{data.fingerprint} {name}")
            for name in data.splits
        }
        size = data.info.vocab_size
        assert size is not None
        return Packable(splits, data.assets()[ASSET], size)

    @abstractmethod
    def corpora(self, base: Path, only: str | None, say: Say) -> dict[str, Corpus]:
        """The texts of the splits, or those that `only` one needs."""

    def named(self, base: Path) -> tuple[str, ...]:
        return ("train",)

    def longest(self) -> int:
        return self.context

    def isolates(self) -> bool:
        return self.isolate

    def expected(self, assets: Assets | None) -> Expected:
        names = {
            "tokens",
            *(["words"] if self.words else []),
            *(["segments"] if self.isolate else []),
        }
        info = DatasetInfo(vocab_size=expected_size(self.tokenizer, assets), context=self.context)
        return Expected(info, frozenset(names))


class TextOptions(_TextOptions):
    """Text files: .txt and .jsonl, plain or .gz; paths, globs and folders.

    Line ends are read as newlines.
    """

    paths = ("files", "val_files", "test_files")
    type: Literal["text"] = "text"
    files: Annotated[list[str], Field(min_length=1)] = Field(
        description="files, globs or folders, read in this order"
    )
    val_files: list[str] = Field([], description="files for validation, instead of val_fraction")
    test_files: list[str] = Field([], description="files for the test split")
    field: str = Field(
        "text", description="the key of the text in .jsonl rows; a.b for b in the object a"
    )

    @model_validator(mode="after")
    def _one_validation(self) -> TextOptions:
        if self.val_fraction != TENTH:  # earlier versions recorded it together with val_files
            not_both(self.val_files, "val_files", self.val_fraction)
        return self

    def corpora(self, base: Path, only: str | None, say: Say) -> dict[str, Corpus]:
        """The files of each split that is needed."""
        named = {"train": (self.files, "data.files"), "val": (self.val_files, "data.val_files")}
        named["test"] = (self.test_files, "data.test_files")
        return {
            n: Corpus(files, self.field)
            for n, files in files_of_splits(named, base, only, say).items()
        }

    def named(self, base: Path) -> tuple[str, ...]:
        return (
            "train",
            *(["val"] if self.val_files else []),
            *(["test"] if self.test_files else []),
        )


class StdlibOptions(_TextOptions):
    """Source and documentation of this Python's own standard library: text that is on every
    machine.
    """

    test_data: ClassVar[str] = "'data={type: text, files: [FILE], test_files: [FILE], context: N}'"
    type: Literal["stdlib"] = "stdlib"
    max_bytes: Annotated[int, Field(ge=10_000, le=10**8)] = Field(
        3_000_000, description="how much of it, in bytes"
    )

    def corpora(self, base: Path, only: str | None, say: Say) -> dict[str, Corpus]:
        """All of it is for training."""
        return {"train": Corpus(standard_library(self.max_bytes))}
