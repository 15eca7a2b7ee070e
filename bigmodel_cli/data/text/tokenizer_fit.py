"""The tokenizers of a spec, and how each is made: computed, trained on the text, or read from a
file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import Field

from bigmodel_cli.config import Options
from bigmodel_cli.data.base import Assets, Say
from bigmodel_cli.data.cache import cache_directory, cached_bytes
from bigmodel_cli.data.files import check_plain, expand
from bigmodel_cli.data.hashes import check_unchanged
from bigmodel_cli.data.text.bpe import train_bpe
from bigmodel_cli.data.text.corpus import Survey
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer, CharacterTokenizer
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET, SPECIAL_ASSET, read_tokenizer
from bigmodel_cli.data.text.tokenizer_library import MOST_BYTES
from bigmodel_cli.errors import CheckpointError, DataError, SpecError
from bigmodel_cli.progress import reading

FORMAT = 3  # of the cached tokenizers


class Documents(Protocol):
    """What a tokenizer can be fitted on."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the documents."""

    def documents(self) -> Iterator[Iterator[str]]:
        """Each document as an iterator over pieces of its text."""


class Corpora(NamedTuple):
    """What a tokenizer is fitted on: the training documents, if any, and the survey of each split.

    `held_out` says which part of the training documents' files is left out of them.
    """

    train: Documents | None
    surveys: Mapping[str, Survey]
    held_out: float | None = None


class _FittedOptions(Options):
    type: str

    def fit(self, texts: Corpora, say: Say) -> Tokenizer:
        """The tokenizer for these texts."""
        raise NotImplementedError

    def expected_size(self) -> int:
        """How many tokens it will have, whatever the texts are.

        Raises `DataError` where that depends on them.
        """
        raise DataError(
            f"the vocabulary size of a tokenizer of type {self.type} is not known: give"
            " data.tokenizer: bytes, or {type: bpe, vocab_size: N}"
        )


class BytesOptions(_FittedOptions):
    """Every byte of the UTF-8 text is a token: 256 and one for the end of a document."""

    type: Literal["bytes"] = "bytes"

    def fit(self, texts: Corpora, say: Say) -> Tokenizer:
        return ByteTokenizer()

    def expected_size(self) -> int:
        """The bytes, and the end of a document."""
        return ByteTokenizer.vocab_size


class CharactersOptions(_FittedOptions):
    """Every character of the corpus is a token, in code point order; and the end of a document
    where there are several.
    """

    type: Literal["characters"] = "characters"

    def fit(self, texts: Corpora, say: Say) -> Tokenizer:
        """Of the characters of all splits."""
        symbols = "".join(s.symbols for s in texts.surveys.values())
        return CharacterTokenizer(symbols, any(s.documents > 1 for s in texts.surveys.values()))


class BPEOptions(_FittedOptions):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), trained on the
    training split.
    """

    type: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = Field(
        description="tokens, with the 256 bytes and the end"
    )

    def fit(self, texts: Corpora, say: Say) -> Tokenizer:
        """Trained once, and cached."""
        train, survey = texts.train, texts.surveys["train"]
        assert train is not None
        key = [FORMAT, survey.digest, self.vocab_size, texts.held_out]

        def trained() -> bytes:
            say(
                f"training a BPE tokenizer of {self.vocab_size:,} tokens (once: kept in"
                f" {cache_directory('tokenizers')})"
            )
            pieces = (text for document in train.documents() for text in document)
            with reading("counting words for the tokenizer", train.files):
                content = train_bpe(pieces, self.vocab_size).to_json()
            check_unchanged(train.files, survey.hashes)
            return content

        return read_tokenizer(cached_bytes("tokenizers", key, trained), ASSET)

    def expected_size(self) -> int:
        """The size asked for; a small text may give fewer."""
        return self.vocab_size


class FileOptions(_FittedOptions):
    """A tokenizer.json of the tokenizers library, as other projects publish it."""

    type: Literal["file"] = "file"
    path: str = Field(description="the tokenizer.json")

    def fit(self, texts: Corpora, say: Say) -> Tokenizer:
        """Reads the file; reports which characters of the texts it has no token for.

        Raises `SpecError` where it cannot be read.
        """
        path = str(expand(self.path, Path(), "data.tokenizer.path"))
        check_plain(Path(path), SpecError)
        try:
            with open(path, "rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise SpecError(
                f"data.tokenizer.path: {path} cannot be read: {error.strerror}"
            ) from None
        tokenizer = read_tokenizer(content, f"data.tokenizer.path: {path}", SpecError)
        symbols = sorted({symbol for found in texts.surveys.values() for symbol in found.symbols})
        unknown = tokenizer.unknown(symbols)
        if unknown:
            shown = ", ".join(f"{symbol!r}" for symbol in unknown[:5]) + (
                " ..." if len(unknown) > 5 else ""
            )
            say(
                f"warning: data.tokenizer: {path} has no token for {len(unknown):,} of the"
                f" {len(symbols):,} characters in the texts ({shown}): they are left out, or read"
                " as its unknown token"
            )
        return tokenizer

    def expected_size(self) -> int:
        return self.fit(Corpora(None, {}), lambda text: None).vocab_size


TokenizerOptions = Annotated[
    BytesOptions | CharactersOptions | BPEOptions | FileOptions, Field(discriminator="type")
]


def fit_tokenizer(
    wanted: _FittedOptions,
    texts: Corpora,
    say: Say,
    assets: Assets | None,
    asset: str = ASSET,
    ends: str = "",
) -> Tokenizer:
    """The tokenizer that the options describe, or the one that a checkpoint has as `asset`.

    Where `ends` says what the end of a text ends, the tokenizer must have a token for it; raises
    `SpecError`.
    """
    if assets is not None and asset in assets:
        name = f"{asset} of the checkpoint"
        special = assets.get(SPECIAL_ASSET) if asset == ASSET else None
        tokenizer = read_tokenizer(bytes(assets[asset]), name, CheckpointError, special)
    else:
        tokenizer = wanted.fit(texts, say)
    if ends and tokenizer.end_of_text is None:
        raise SpecError(
            f"data.{asset.removesuffix('.json')}: it has no mark for the end of a text, which ends"
            f" {ends}; use bpe or bytes"
        )
    return tokenizer


def expected_size(wanted: _FittedOptions, assets: Assets | None, asset: str = ASSET) -> int:
    """How many tokens that tokenizer will have.

    Raises `DataError` where that depends on the texts.
    """
    if assets is not None and asset in assets:
        return fit_tokenizer(wanted, Corpora(None, {}), lambda text: None, assets, asset).vocab_size
    return wanted.expected_size()
