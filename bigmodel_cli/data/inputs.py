"""From a user's input (a line, a file, a recording) to a model's: the one way of predict, eval and
attend.

There is a reader for each form of data. It cleans, marks, limits, resizes and normalises as for
that form's training data, by the same functions; an item that it cannot read is an error of only
that item.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.audio.split import batch_of_sounds, read_sound
from bigmodel_cli.data.batches import padded
from bigmodel_cli.data.files import SKIP
from bigmodel_cli.data.image.pixels import prepare_image
from bigmodel_cli.data.text.cleaning import checked, clean, printable, without_bom
from bigmodel_cli.data.text.split import batch_of_texts, encode, marks
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.packages import MissingPackage


@dataclass(frozen=True)
class Item:
    """One input: its number from 0, what was given, and its content as read, or the error
    instead.
    """

    number: int
    given: str
    content: Any = None
    truncated: bool = False
    error: str | None = None


class Reader(Protocol):
    """Reads inputs of one form.

    `most` says in words how much of an input it takes.
    """

    most: str

    def read(self, given: str, place: str) -> tuple[Any, bool]:
        """An input's content, and whether it was cut.

        Raises `DataError`; `place` names the input.
        """

    def batch(self, contents: Sequence[Any]) -> dict[str, Tensor]:
        """Several contents as one batch, each as it would be alone but for padding."""


class LongReader(Reader, Protocol):
    """Reads inputs that may be longer than the model takes at once."""

    def windows(self, given: str, place: str) -> list[Any]:
        """An input's contents, one after the other, where it is longer than the model takes at
        once; one content of what cannot be read so, cut as `read` does. Raises `DataError`.
        """


def read_items(reader: Reader, inputs: Iterable[str], word: str, first: int = 0) -> Iterator[Item]:
    """An item for each input, in order, whether it can be read or not; `word` is what an input is
    called ("line"), and `first` the number of the first one.
    """
    for number, given in enumerate(inputs, first):
        try:
            content, truncated = reader.read(given, f"{word} {number + 1}")
            yield Item(number, printable(given), content, truncated)
        except (DataError, MissingPackage) as error:
            yield Item(number, printable(given), error=printable(str(error)))


class Images:
    """Image files: {"image": (B, C, H, W)}."""

    most = ""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def read(self, given: str, place: str) -> tuple[Tensor, bool]:
        """(1, C, H, W): the pixels, resized and normalised."""
        with _of_an_input():
            return prepare_image(_named(given, place), self.info), False

    def windows(self, given: str, place: str) -> list[Any]:
        """It as a whole."""
        return [self.read(given, place)[0]]

    def batch(self, contents: Sequence[Tensor]) -> dict[str, Tensor]:
        """One after the other."""
        return {"image": torch.cat(list(contents))}


class Sounds:
    """Recordings: {"image": (B, 1, mels, T)}, or {"frames": (B, T, mels), "lengths": (B,)}; none is
    cut.
    """

    most = ""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def read(self, given: str, place: str) -> tuple[Any, bool]:
        """The samples."""
        with _of_an_input():
            return read_sound(_named(given, place), self.info), False

    def windows(self, given: str, place: str) -> list[Any]:
        """It as a whole."""
        return [self.read(given, place)[0]]

    def batch(self, contents: Sequence[Any]) -> dict[str, Tensor]:
        """The frames, padded to the longest."""
        return batch_of_sounds(contents, self.info)


class Rows:
    """Texts, or pairs of them with a tab between, as rows of a table: {"tokens": (B, T), for pairs
    "types": (B, T)}.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, sides: int) -> None:
        self.tokenizer, self.context, self.sides = tokenizer, context, sides
        self.most = f"{context} tokens, marks included"

    def read(self, given: str, place: str) -> tuple[list[Any], bool]:
        """The tokens of each side, without special tokens."""
        texts = _sides(checked(given, place), self.sides, place)
        sides = [encode(self.tokenizer, clean(text), place) for text in texts]
        count = sum(len(side) for side in sides)
        if not count:
            raise DataError(f"{place} is empty: there is no text to read")
        return sides, count > marks(self.tokenizer).room(self.context, sides)

    def windows(self, given: str, place: str) -> list[list[Any]]:
        """A text's tokens in as many pieces as the context asks for; a pair is one, cut as ever."""
        sides, cut = self.read(given, place)
        if not cut or len(sides) > 1:
            return [sides]
        tokens = [int(token) for token in sides[0]]
        return [
            [part] for part in pieces_of(tokens, marks(self.tokenizer).room(self.context, sides))
        ]

    def batch(self, contents: Sequence[list[Any]]) -> dict[str, Tensor]:
        """The rows with their special tokens, padded on the right."""
        return batch_of_texts(contents, self.tokenizer, self.context)


class Sources:
    """Sources of an encoder-decoder: {"source": (B, S)}, each with an end token; `empty` allows
    sources without a token.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, empty: bool = False) -> None:
        assert tokenizer.end_of_text is not None
        self.tokenizer, self.context, self.end, self.empty = (
            tokenizer,
            context,
            tokenizer.end_of_text,
            empty,
        )
        self.most = f"{context} tokens, the end included"

    def read(self, given: str, place: str) -> tuple[list[int], bool]:
        """The tokens and the end."""
        tokens = encode(self.tokenizer, clean(checked(given, place)), place)
        if not len(tokens) and not self.empty:
            raise DataError(f"{place} is empty: there is no text to read")
        return [*map(int, tokens[: self.context - 1]), self.end], len(tokens) >= self.context

    def batch(self, contents: Sequence[list[int]]) -> dict[str, Tensor]:
        """Padded on the right."""
        return {"source": padded(contents)}


class Windows:
    """Running text for a bidirectional model, without special tokens: {"tokens": (1, T)}; what is
    too long loses its end.
    """

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        self.most = f"{context} tokens"

    def read(self, given: str, place: str) -> tuple[list[int], bool]:
        """The tokens."""
        tokens = self.whole(given, place)
        return tokens[: self.context], len(tokens) > self.context

    def windows(self, given: str, place: str) -> list[list[int]]:
        """The tokens in as many pieces as the context asks for."""
        return pieces_of(self.whole(given, place), self.context)

    def whole(self, given: str, place: str) -> list[int]:
        """All tokens, however many the model takes."""
        tokens = encode(self.tokenizer, without_bom(checked(given, place)), place)
        if not len(tokens):
            raise DataError(f"{place}: the text is empty; give at least one character")
        return [int(token) for token in tokens]

    def batch(self, contents: Sequence[list[int]]) -> dict[str, Tensor]:
        """Padded on the right."""
        return {"tokens": padded(contents)}


def pieces_of(tokens: list[int], size: int) -> list[list[int]]:
    """The tokens in pieces of this size, the first of which may be shorter."""
    first = (len(tokens) - 1) % size + 1
    starts = [0, *range(first, len(tokens), size)]
    return [tokens[a:b] for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


def _named(given: str, place: str) -> Path:
    if not given.strip():
        raise DataError(f"{place} is empty: it names no file")
    if os.path.isdir(given):
        raise DataError(f"{given}: a folder; name the files in it")
    return Path(given)


@contextlib.contextmanager
def _of_an_input() -> Iterator[None]:
    """Inside, a fault of a file is reported without the remedy for training data."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).removesuffix(SKIP)) from None


def _sides(given: str, count: int, place: str) -> list[str]:
    """The texts of an item, two with a tab between where the model reads pairs."""
    if count == 1:
        return [given]
    sides = given.split("\t")
    if len(sides) != count:
        raise DataError(
            f"{place}: {given[:60]!r}: this model labels pairs of texts; write both on a line with"
            " a tab between"
        )
    return sides
