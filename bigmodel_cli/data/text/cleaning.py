"""What is taken off a text before it becomes tokens: the same in training, eval, predict and
attend.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from bigmodel_cli.data.reading import one_newline
from bigmodel_cli.errors import DataError

BOM = "\ufeff"


def clean(text: str) -> str:
    """A row of a table, or one side of a pair, without a byte order mark before it and blanks
    around it.
    """
    return text.removeprefix(BOM).strip()


def without_bom(text: str) -> str:
    """Running text, whose blanks count, without a byte order mark before it."""
    return text.removeprefix(BOM)


def checked(text: str, place: str) -> str:
    """The text with "\\n" for every line end, as it is in data that is trained on.

    Raises `DataError` where it holds bytes that are not UTF-8, or surrogates of another origin.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        offset = len(text[: error.start].encode("utf-8"))
        raise DataError(f"{place} is not UTF-8 at byte {offset}; save it as UTF-8") from None
    return one_newline(text)


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """The lines of a stream of bytes, empty ones too: ended by a newline alone, of which a carriage
    return before it is a part.

    A byte order mark at the very beginning is left out. Bytes that are not UTF-8 stay as lone
    surrogates, so that the name of a file is still that file's, and whoever reads text can say
    where they are.
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
    except UnicodeEncodeError:  # surrogates that no byte stands behind
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
