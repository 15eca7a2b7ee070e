"""Running text for language models: windows of a token stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from bigmodel_cli.config import PADDING, Count, Facts, Options
from bigmodel_cli.data.base import DataSet, Say, Split
from bigmodel_cli.data.cache import build_once, cache_directory, cached_bytes
from bigmodel_cli.data.corpus import ENDINGS, Corpus, Survey, has_rows, standard_library, survey
from bigmodel_cli.data.files import expand, find_files
from bigmodel_cli.data.hashes import check_unchanged
from bigmodel_cli.data.order import Ints, draw
from bigmodel_cli.data.tokenizer import (
    ASSET,
    BPEOptions,
    BytesOptions,
    ByteTokenizer,
    CharactersOptions,
    CharacterTokenizer,
    FileOptions,
    Tokenizer,
    TokenizerOptions,
    read_tokenizer,
    read_tokenizer_file,
    train_bpe,
)
from bigmodel_cli.data.words import Words
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.lazy import Tensor, torch

RESIDENT_BYTES = 512 << 20
FORMAT = 2  # of the cached tokens
PHASE = 1  # stream of random numbers that shifts the windows


class _TextOptions(Options):
    context: Count = Field(description="tokens that the model sees at once (T)")
    tokenizer: TokenizerOptions = Field(BytesOptions(), description="text to tokens")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="last part of the text, kept for validation"
    )
    words: bool = Field(False, description="say which word each token belongs to, for masked_lm")
    isolate: bool = Field(
        False, description="a token sees its own document alone, where several stand in a window; for causal_lm"
    )


class TextOptions(_TextOptions):
    """Text files: .txt and .jsonl, plain or .gz; paths, globs and folders."""

    type: Literal["text"] = "text"
    files: Annotated[list[str], Field(min_length=1)] = Field(description="files, globs or folders, read in this order")
    val_files: list[str] = Field([], description="files for validation, in place of val_fraction")
    test_files: list[str] = Field([], description="files for the test split")
    field: str = Field("text", description="the key of the text in .jsonl rows")


class StdlibOptions(_TextOptions):
    """Source and documentation of this Python's own standard library: text that is on every machine."""

    type: Literal["stdlib"] = "stdlib"
    max_bytes: Annotated[int, Field(ge=10_000, le=10**8)] = Field(3_000_000, description="how much of it, in bytes")


def open_text(
    options: TextOptions | StdlibOptions, *, base: Path, seed: int, say: Say, assets: Path | None = None
) -> DataSet:
    """The text as windows of tokens; the tokenizer is fitted, or a checkpoint's when `assets` names one."""
    corpora = _corpora(options, base)
    surveys = {name: survey(corpus) for name, corpus in corpora.items()}
    if not surveys["train"].characters:
        raise DataError(f"the corpus is empty: {', '.join(str(f) for f in corpora['train'].files[:3])}")
    held_out = None if "val" in corpora else options.val_fraction
    tokenizer = fit_tokenizer(options.tokenizer, corpora, surveys, held_out, say, assets)
    description = [FORMAT, tokenizer.to_json().decode("utf-8"), held_out]
    description += [[name, s.digest, _is_one_document(corpora[name])] for name, s in surveys.items()]
    key = hashlib.sha256(json.dumps(description).encode()).hexdigest()
    folder = cache_directory("tokens") / key
    if not folder.is_dir():
        say(f"tokenizing {sum(s.characters for s in surveys.values()):,} characters (once: kept in {folder.parent})")

    def build(draft: Path) -> None:
        _write_tokens(draft, corpora, surveys, tokenizer, options.val_fraction)
        for name, corpus in corpora.items():
            check_unchanged(corpus.files, surveys[name].hashes)

    build_once(folder, build)
    names = [name for name in ("train", "val", "test") if (folder / f"{name}.bin").exists()]
    dtype = token_dtype(tokenizer)
    words = Words(tokenizer) if options.words else None
    end = tokenizer.end_of_text if options.isolate else None
    if options.isolate and end is None:
        raise SpecError("data.isolate: the text is one document, or its tokenizer has no mark for the end of one")
    splits: dict[str, Split] = {n: Windows(folder / f"{n}.bin", dtype, options.context, n, words, end) for n in names}
    facts = Facts(vocab_size=tokenizer.vocab_size, context=options.context)
    return DataSet(facts, f"{key}-{options.context}", splits, {"tokenizer.json": tokenizer.to_json()})


class Windows:
    """Windows of T + 1 tokens. In training they start at another phase each epoch; in evaluation they cover every target once."""

    lengths: Ints | None = None

    def __init__(
        self, path: Path, dtype: Any, context: int, name: str, words: Words | None = None, end: int | None = None
    ) -> None:
        self.path, self.context, self.train, self.words, self.end = path, context, name == "train", words, end
        self.tokens: Any = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
        total = len(self.tokens)
        if total < context + 1:
            raise DataError(
                f"the {name} split has {total:,} tokens, fewer than one window of context {context} + 1; "
                "use more text, another val_fraction, or a smaller data.context"
            )
        self.count = max(1, (total - context) // context) if self.train else -(-(total - 1) // context)
        self.phases = min(context, total - self.count * context) if self.train else 1
        self.resident = 4 * total <= RESIDENT_BYTES
        self.drawn: tuple[tuple[int, int], int] = ((-1, -1), 0)
        self.stream: Tensor | None = None
        self.steps: Tensor | None = None

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device) -> None:
        """Hold all tokens as one tensor on the device."""
        if self.resident and (self.stream is None or self.stream.device != device):
            self.stream = torch.from_numpy(self.tokens.astype(np.int32)).to(device)
            self.steps = torch.arange(self.context + 1, device=device)

    def phase(self, epoch: int, seed: int) -> int:
        """How far all windows of an epoch are moved, drawn from [0, phases)."""
        if self.drawn[0] != (epoch, seed):
            u = draw(seed, epoch, np.zeros(1, np.int64), PHASE, 1)[0, 0]
            self.drawn = ((epoch, seed), int(u * self.phases))
        return self.drawn[1]

    def batch(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """{"tokens": (B, T + 1) int64}; -1 after the end of the text, which only evaluation reaches.

        "words" (B, T + 1) numbers each token's word where the options ask for it, "segments" its document: that begins with the
        mark that ends the one before, from which its first token is foretold.
        """
        batch = {"tokens": self.take(samples, epoch, seed)}
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
            tokens = self.stream[index if past is None else index.clamp(max=len(self.stream) - 1)].long()
            return tokens if past is None else tokens.masked_fill(past, PADDING)
        places = starts[:, None] + np.arange(self.context + 1)
        taken = self.tokens[np.minimum(places, len(self.tokens) - 1)].astype(np.int64)
        taken[places >= len(self.tokens)] = PADDING
        return torch.from_numpy(taken)


def _corpora(options: TextOptions | StdlibOptions, base: Path) -> dict[str, Corpus]:
    if isinstance(options, StdlibOptions):
        return {"train": Corpus(standard_library(options.max_bytes))}
    named = {"train": (options.files, "data.files"), "val": (options.val_files, "data.val_files")}
    named["test"] = (options.test_files, "data.test_files")
    return {
        name: Corpus(find_files(files, base, option, ENDINGS), options.field)
        for name, (files, option) in named.items()
        if files
    }


def fit_tokenizer(
    wanted: BytesOptions | CharactersOptions | BPEOptions | FileOptions,
    corpora: dict[str, Corpus],
    surveys: dict[str, Survey],
    held_out: float | None,
    say: Say,
    assets: Path | None,
    asset: str = ASSET,
) -> Tokenizer:
    """The tokenizer that the options describe, or the one that a checkpoint carries as `asset`.

    BPE is trained on the train corpus, without its last part where `held_out` is kept for validation; characters are those of all.
    """
    if assets is not None and (assets / asset).exists():
        return read_tokenizer((assets / asset).read_bytes(), str(assets / asset))
    if isinstance(wanted, BytesOptions):
        return ByteTokenizer()
    if isinstance(wanted, FileOptions):
        return read_tokenizer_file(str(expand(wanted.path, Path(), "data.tokenizer.path")))
    if isinstance(wanted, CharactersOptions):
        symbols = "".join(s.symbols for s in surveys.values())
        return CharacterTokenizer(symbols, any(s.documents > 1 for s in surveys.values()))
    key = [FORMAT, surveys["train"].digest, wanted.vocab_size, held_out]

    def train() -> bytes:
        say(f"training a BPE tokenizer of {wanted.vocab_size:,} tokens (once: kept in {cache_directory('tokenizers')})")
        limit = surveys["train"].characters if held_out is None else train_characters(surveys["train"], held_out)
        content = train_bpe(_first(corpora["train"], limit), wanted.vocab_size).to_json()
        check_unchanged(corpora["train"].files, surveys["train"].hashes)
        return content

    return read_tokenizer(cached_bytes("tokenizers", key, train), ASSET)


def train_characters(found: Survey, val_fraction: float) -> int:
    """How many characters, from the start of the text, are for training."""
    return int(found.characters * (1 - val_fraction))


def _first(corpus: Corpus, characters: int) -> Iterator[str]:
    """The pieces of the first so many characters."""
    for document in corpus.documents():
        for text in document:
            yield text[:characters]
            characters -= len(text)
            if characters <= 0:
                return


def _write_tokens(
    draft: Path, corpora: dict[str, Corpus], surveys: dict[str, Survey], tokenizer: Tokenizer, val_fraction: float
) -> None:
    """Write train.bin, val.bin ...: the tokens one after the other."""
    dtype = token_dtype(tokenizer)
    for name, corpus in corpora.items():
        if name == "train" and "val" not in corpora:
            cut = train_characters(surveys["train"], val_fraction)
            with open(draft / "train.bin", "wb") as first, open(draft / "val.bin", "wb") as second:
                for tokens, position in _encoded(corpus, tokenizer, cut):
                    (first if position < cut else second).write(np.asarray(tokens, dtype).tobytes())
        else:
            with open(draft / f"{name}.bin", "wb") as file:
                for tokens, _ in _encoded(corpus, tokenizer, None):
                    file.write(np.asarray(tokens, dtype).tobytes())


def _is_one_document(corpus: Corpus) -> bool:
    """Whether a corpus is one running text, without marks."""
    return len(corpus.files) == 1 and not has_rows(corpus.files[0])


def _encoded(corpus: Corpus, tokenizer: Tokenizer, cut: int | None) -> Iterator[tuple[Any, int]]:
    """(tokens, position of their first character) of each piece; a piece never reaches over the position `cut`."""
    position = 0
    end = [tokenizer.end_of_text] if tokenizer.end_of_text is not None else []
    single = _is_one_document(corpus)
    for document in corpus.documents():
        for text in document:
            inside = cut - position if cut is not None and position < cut < position + len(text) else len(text)
            for piece in filter(None, (text[:inside], text[inside:])):
                yield tokenizer.encode_array(piece), position
                position += len(piece)
        if not single:
            yield end, position - 1


def token_dtype(tokenizer: Tokenizer) -> Any:
    """The smallest type that holds every token."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
