"""Cleaning of a text before tokenization: the same in training, eval, predict and attend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from bigmodel_cli.data.reading import one_newline
from bigmodel_cli.errors import DataError

BOM = "\ufeff"


def clean(text: str) -> str:
    """A row of a table, or one side of a pair, without a leading byte order mark and surrounding
    blanks.
    """
    return text.removeprefix(BOM).strip()


def without_bom(text: str) -> str:
    """Running text, whose blanks count, without a leading byte order mark."""
    return text.removeprefix(BOM)


def checked(text: str, place: str) -> str:
    """The text with "\n" for every line end, as in training data.

    Raises `DataError` where it contains bytes that are not UTF-8, or other lone surrogates.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        offset = len(text[: error.start].encode("utf-8"))
        raise DataError(f"{place} is not UTF-8 at byte {offset}; save it as UTF-8") from None
    return one_newline(text)


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """The lines of a stream of bytes, empty ones too, ended by "\n" or "\r\n".

    A byte order mark at the very beginning is left out. Bytes that are not UTF-8 stay as lone
    surrogates, so that a file's name is still its own, and who reads text can say where they are.
    """
    for number, line in enumerate(stream):
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")
        yield text if number else without_bom(text)


def printable(text: str) -> str:
    """The text with bytes that are not UTF-8 as escapes (\\xff), so that it can be written as
    UTF-8.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that are not from a byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
