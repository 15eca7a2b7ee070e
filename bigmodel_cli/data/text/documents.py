"""Running text for language models: windows of a token stream."""

from __future__ import annotations

import os
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import PADDING, Count, DatasetInfo
from bigmodel_cli.data.base import Assets, DataSet, Say, Split
from bigmodel_cli.data.cache import cached_folder, key_of
from bigmodel_cli.data.expected import Expected
from bigmodel_cli.data.hashes import check_unchanged
from bigmodel_cli.data.holdout import (
    TENTH,
    HeldOutOptions,
    ValFraction,
    files_of_splits,
    not_both,
)
from bigmodel_cli.data.order import Ints, draw, keys_of
from bigmodel_cli.data.reading import plain_name
from bigmodel_cli.data.text.corpus import Corpus, standard_library, survey
from bigmodel_cli.data.text.parts import (
    Part,
    single,
    tell_part,
    token_dtype,
    training_part,
    write_tokens,
)
from bigmodel_cli.data.text.tokenizer import ASSET
from bigmodel_cli.data.text.tokenizer_fit import (
    BytesOptions,
    Corpora,
    TokenizerOptions,
    expected_size,
    fit_tokenizer,
)
from bigmodel_cli.data.text.word_ids import Words
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.progress import reading

RESIDENT_BYTES = 512 << 20
FORMAT = 3  # of the cached tokens
TABLES = (".json", ".ndjson", ".csv", ".tsv")
"""Endings of files that are not running text."""
PHASE = 1  # stream of random numbers that shifts the windows


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
        return _open_text(self, base, say, assets, only)

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


def _open_text(
    options: _TextOptions, base: Path, say: Say, assets: Assets | None, only: str | None
) -> DataSet:
    """The text as windows of tokens; the tokenizer is fitted, or a checkpoint's when `assets` has
    one.
    """
    corpora = options.corpora(base, only, say)
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
    fraction = options.fraction(base)
    own = {}
    if fraction and "train" in surveys:
        own["train"] = training_part(surveys["train"].lengths, fraction)
        if only is None:
            tell_part(surveys["train"], own["train"], say)
    parts = [Part(n, c, own.get(n), single(c)) for n, c in corpora.items()]
    train = next((part for part in parts if part.name == "train"), None)
    tokenizer = fit_tokenizer(options.tokenizer, Corpora(train, surveys, fraction), say, assets)
    description = [FORMAT, tokenizer.to_json().decode("utf-8"), fraction]
    description += [[name, s.digest, single(corpora[name])] for name, s in surveys.items()]

    def build(draft: Path) -> None:
        with reading("tokenizing", [path for corpus in corpora.values() for path in corpus.files]):
            write_tokens(draft, parts, tokenizer)
        for name, corpus in corpora.items():
            check_unchanged(corpus.files, surveys[name].hashes)

    key = key_of(description)
    folder = cached_folder(
        "tokens",
        key,
        f"tokenizing {sum(s.characters for s in surveys.values()):,} characters",
        say,
        build,
    )
    existing = [name for name in ("train", "val", "test") if os.path.exists(folder / f"{name}.bin")]
    dtype = token_dtype(tokenizer)
    words = Words(tokenizer) if options.words else None
    end = tokenizer.end_of_text if options.isolate else None
    if options.isolate and end is None:
        raise SpecError(
            "data.isolate: the text is one document, or its tokenizer has no mark for the end"
            " of one"
        )
    splits: dict[str, Split] = {
        n: Windows(folder / f"{n}.bin", dtype, options.context, n, words, end)
        for n in existing
        if only in (None, n)
    }
    return DataSet(
        DatasetInfo(vocab_size=tokenizer.vocab_size, context=options.context),
        f"{key}-{options.context}",
        splits,
        {ASSET: tokenizer.to_json()},
        {name: partial(np.load, folder / f"{name}.items.npy") for name in existing},
        "blocks of lines",
        fraction > 0,
    )


class Windows(Split):
    """Windows of T + 1 tokens.

    In training each epoch starts them at another phase; in evaluation they cover every target once.
    """

    def __init__(
        self,
        path: Path,
        dtype: Any,
        context: int,
        name: str,
        words: Words | None = None,
        end: int | None = None,
    ) -> None:
        self.path, self.context, self.train, self.words, self.end = (
            path,
            context,
            name == "train",
            words,
            end,
        )
        self.tokens: Any = (
            np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
        )
        total = len(self.tokens)
        if total < context + 1:
            raise DataError(
                f"the {name} split has {total:,} tokens, fewer than one window of context {context}"
                " + 1; use more text, another val_fraction, or a smaller data.context"
            )
        self.count = (
            max(1, (total - context) // context) if self.train else -(-(total - 1) // context)
        )
        self.phases = min(context, total - self.count * context) if self.train else 1
        self.resident = 4 * total <= RESIDENT_BYTES
        self.drawn: tuple[tuple[int, int], int] = ((-1, -1), 0)
        self.stream: Tensor | None = None
        self.steps: Tensor | None = None

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device) -> None:
        """Keep all tokens as one tensor on the device."""
        if self.resident and (self.stream is None or self.stream.device != device):
            self.stream = torch.from_numpy(self.tokens.astype(np.int32)).to(device)
            self.steps = torch.arange(self.context + 1, device=device)

    def phase(self, epoch: int, seed: int) -> int:
        """The offset of all windows of an epoch, drawn from [0, phases)."""
        if self.drawn[0] != (epoch, seed):
            u = draw(seed, epoch, np.zeros(1, np.int64), PHASE, 1)[0, 0]
            self.drawn = ((epoch, seed), int(u * self.phases))
        return self.drawn[1]

    def batch(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """{"tokens": (B, T + 1) int64, "key": (B,)}; -1 after the end of the text, which only
        evaluation reaches.

        "words" (B, T + 1) numbers each token's word where the options ask for it, "segments" its
        document. A document starts with the preceding end-of-text token, which is the context for
        its first token.
        """
        batch = {"tokens": self.take(samples, epoch, seed), KEY: keys_of(seed, epoch, samples)}
        if self.words is not None:
            batch["words"] = self.words(batch["tokens"])
        if self.end is not None:
            batch["segments"] = (batch["tokens"] == self.end).cumsum(1)
        return batch

    def take(self, samples: Ints, epoch: int, seed: int) -> Tensor:
        """(B,) -> (B, T + 1)   the windows themselves."""
        starts = samples * self.context + (self.phase(epoch, seed) if self.train else 0)
        if self.stream is not None and self.steps is not None:
            index = torch.from_numpy(starts).to(self.stream.device)[:, None] + self.steps
            past = index >= len(self.stream) if not self.train else None
            tokens = self.stream[
                index if past is None else index.clamp(max=len(self.stream) - 1)
            ].long()
            return tokens if past is None else tokens.masked_fill(past, PADDING)
        places = starts[:, None] + np.arange(self.context + 1)
        taken = self.tokens[np.minimum(places, len(self.tokens) - 1)].astype(np.int64)
        taken[places >= len(self.tokens)] = PADDING
        return torch.from_numpy(taken)
