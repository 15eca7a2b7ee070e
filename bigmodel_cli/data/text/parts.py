"""The training and held-out parts of a text, their tokens in the cache, and windows of them."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np

from bigmodel_cli.config import PADDING
from bigmodel_cli.data.base import Say, Split
from bigmodel_cli.data.cache import cached_folder, key_of
from bigmodel_cli.data.hashes import check_unchanged
from bigmodel_cli.data.holdout import KEY as HELD_OUT_KEY
from bigmodel_cli.data.holdout import tell
from bigmodel_cli.data.order import Ints, draw, permute
from bigmodel_cli.data.reading import is_json_lines
from bigmodel_cli.data.text.corpus import Corpus, Survey
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.word_ids import Words
from bigmodel_cli.data.trained_on import Hashes, blocks
from bigmodel_cli.device import sent
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.progress import reading

RESIDENT_BYTES = 512 << 20
PHASE = 1  # stream of random numbers that shifts the windows


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
    for index in permute(np.arange(len(own)), len(own), HELD_OUT_KEY).tolist():
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


def tokenized(
    kind: str,
    description: list[Any],
    what: str,
    hashes: Sequence[tuple[Path, str]],
    say: Say,
    write: Callable[[Path], None],
) -> tuple[str, Path, dict[str, Callable[[], Hashes]]]:
    """(key, folder, the items of each split in it) of tokens in the cache, made once by `write`;
    `description` identifies them.

    `hashes` are those of the content of the files, each as often as `write` reads it. Raises
    `DataError` for one that changed meanwhile.
    """
    key = key_of(description)

    def build(draft: Path) -> None:
        with reading("tokenizing", [path for path, _ in hashes]):
            write(draft)
        check_unchanged([path for path, _ in hashes], [sha for _, sha in hashes])

    folder = cached_folder(kind, key, what, say, build)
    files = {name: folder / f"{name}.items.npy" for name in ("train", "val", "test")}
    return key, folder, {n: partial(np.load, f) for n, f in files.items() if os.path.exists(f)}


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
        self.on_device: Tensor | None = None
        self.steps: Tensor | None = None

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device) -> None:
        """Keep all tokens as one tensor on the device."""
        if self.resident and (self.on_device is None or self.on_device.device != device):
            self.on_device = torch.from_numpy(self.tokens.astype(np.int32)).to(device)
            self.steps = torch.arange(self.context + 1, device=device)

    def stream(self) -> Any:
        return self.tokens

    def phase(self, epoch: int, seed: int) -> int:
        """The offset of all windows of an epoch, drawn from [0, phases)."""
        if self.drawn[0] != (epoch, seed):
            u = draw(seed, epoch, np.zeros(1, np.int64), PHASE, 1)[0, 0]
            self.drawn = ((epoch, seed), int(u * self.phases))
        return self.drawn[1]

    def redrawn(self) -> str | None:
        return "windows of a text begin elsewhere in each epoch" if self.phases > 1 else None

    def tensors(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """{"tokens": (B, T + 1) int64}; -1 after the end of the text, which only
        evaluation reaches.

        "words" (B, T + 1) numbers each token's word where the options ask for it, "segments" its
        document. A document starts with the preceding end-of-text token, which is the context for
        its first token.
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
        if self.on_device is not None and self.steps is not None:
            index = sent(torch.from_numpy(starts), self.on_device.device)[:, None] + self.steps
            past = index >= len(self.on_device) if not self.train else None
            tokens = self.on_device[
                index if past is None else index.clamp(max=len(self.on_device) - 1)
            ].long()
            return tokens if past is None else tokens.masked_fill(past, PADDING)
        places = starts[:, None] + np.arange(self.context + 1)
        taken = self.tokens[np.minimum(places, len(self.tokens) - 1)].astype(np.int64)
        taken[places >= len(self.tokens)] = PADDING
        return torch.from_numpy(taken)
