"""The training and held-out parts of a text, and the cached tokens of both."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np

from bigmodel_cli.data.base import Say
from bigmodel_cli.data.holdout import KEY, tell
from bigmodel_cli.data.order import Ints, permute
from bigmodel_cli.data.reading import is_json_lines
from bigmodel_cli.data.text.corpus import Corpus, Survey
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.trained_on import blocks


@dataclass(frozen=True)
class Part:
    """The documents of a split's files; `own` (N,) is how many of each one's first characters
    train, None where all do.
    """

    name: str
    corpus: Corpus
    own: Ints | None
    single: bool  # one document, whose end needs no token

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the documents."""
        return self.corpus.files

    def documents(self) -> Iterator[Iterator[str]]:
        """The training texts: what a tokenizer is fitted on."""
        for document in self.divided():
            yield (text for held, text in document if not held)

    def divided(self) -> Iterator[Iterator[tuple[bool, str]]]:
        """Each document as pieces (whether held out, text)."""
        for index, document in enumerate(self.corpus.documents()):
            yield _cut(document, None if self.own is None else int(self.own[index]))


def _cut(document: Iterator[str], own: int | None) -> Iterator[tuple[bool, str]]:
    for text in document:
        inside = len(text) if own is None else min(own, len(text))
        if text[:inside]:
            yield False, text[:inside]
        if text[inside:]:
            yield True, text[inside:]
        own = None if own is None else own - inside


def training_part(lengths: Sequence[int], fraction: float) -> Ints:
    """(N,) how many of each document's first characters are for training.

    Documents are held out in the order of a fixed permutation until the part is reached; of the
    last of them, which may be the only one, only its tail, so that the part has exactly the right
    size.
    """
    total = sum(lengths)
    missing = total - int(total * (1 - fraction))
    own = np.array(lengths, np.int64)
    for index in permute(np.arange(len(own)), len(own), KEY).tolist():
        held = min(missing, int(own[index]))
        own[index] -= held
        missing -= held
        if not missing:
            break
    return own


def tell_part(found: Survey, own: Ints, say: Say) -> None:
    """Report how much of the text is held out."""
    held = found.characters - int(own.sum())
    touched = int((own < np.array(found.lengths)).sum())
    where = "the tail of the text" if len(own) == 1 else f"in {touched:,} of {len(own):,} documents"
    tell(f"{held:,} of {found.characters:,} characters ({where})", say)


def single(corpus: Corpus) -> bool:
    """Whether a corpus is one document."""
    return len(corpus.files) == 1 and not is_json_lines(corpus.files[0])


def write_tokens(draft: Path, parts: Sequence[Part], tokenizer: Tokenizer) -> None:
    """Write train.bin, val.bin ...: the tokens one after the other; return the hashes of their
    blocks of lines.
    """
    end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    for part in parts:
        names = [part.name] if part.own is None else ["train", "val"]
        hashes: list[Any] = [array("Q") for _ in names]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(draft / f"{name}.bin", "wb")) for name in names]
            for document in part.divided():
                for held, pieces in groupby(document, key=itemgetter(0)):
                    hashes[held].extend(
                        _written(files[held], (text for _, text in pieces), tokenizer)
                    )
                    if not part.single:
                        files[held].write(np.asarray(end, token_dtype(tokenizer)).tobytes())
        for name, found in zip(names, hashes, strict=True):
            np.save(draft / f"{name}.items.npy", np.array(found, np.uint64))


def _written(file: IO[bytes], pieces: Iterator[str], tokenizer: Tokenizer) -> Iterator[int]:
    """Write the tokens of pieces of text; return the hashes of its blocks of lines."""

    def passed_on() -> Iterator[str]:
        for text in pieces:
            file.write(np.asarray(tokenizer.encode_array(text), token_dtype(tokenizer)).tobytes())
            yield text

    return blocks(passed_on())


def token_dtype(tokenizer: Tokenizer) -> Any:
    """The smallest integer type that holds every token."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
