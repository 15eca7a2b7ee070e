"""Text files as text: gzip, UTF-8 and line ends in one place, for corpora, tables, pairs,
transcripts and samples.

Line ends become "\n", whatever the file has: "\r\n" and, in running text, "\r" alone. What is read
line by line takes "\r" alone as a line end only in a file whose first line end it is. No other
character ends a line (U+2028, U+0085, form feeds are text). A byte order mark at the start of a
line, which joined files have, is left out.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from bigmodel_cli.errors import DataError
from bigmodel_cli.progress import advance

FORMAT = 2  # part of the key of everything cached from what is read
CHUNK = 1 << 20
LONGEST_LINE = 1 << 27
"""In characters.

A longer line is not a row of a table; without a limit, a small damaged .gz would fill the memory.
"""
MARK = "\ufeff"
OTHERS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose byte order mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b": "gzip",
}
"""First bytes of files that are not text in UTF-8."""


def plain_name(path: Path) -> str:
    """The name in lower case, without .gz."""
    return path.name.lower().removesuffix(".gz")


def is_json_lines(path: Path) -> bool:
    """Whether a file has a JSON object on each line, by its ending."""
    return plain_name(path).endswith(".jsonl")


def pieces(path: Path) -> Iterator[str]:
    """The text of a file, about a million bytes at a time, cut after a line where there is one.

    Raises `DataError` with the place of what is not UTF-8, or where a .gz is damaged.
    """
    rest, starts = "", True
    for text in _decoded(path):
        text = _at_starts(rest + one_newline(text), starts)
        cut = text.rfind("\n") + 1 or len(text)
        rest, whole = text[cut:], text[:cut]
        if whole:
            starts = whole.endswith("\n")
            yield whole
    if rest:
        yield rest


def lines(path: Path, inner_returns: bool = False) -> Iterator[str]:
    """The lines of a file without their ends.

    `inner_returns`: a "\r" within a line stays (a quoted value may contain one).

    Raises `DataError` as `pieces` does, and for a line that is too long or has a "\r" in it.
    """
    parts: list[str] = []
    alone: bool | None = None  # whether "\r" alone ends a line
    number = length = 0
    for text in _decoded(path):
        if alone is None and (first := re.search("\n|\r+\n?", text)):
            alone = not first[0].endswith("\n")
        if "\r" in text:
            text = one_newline(text) if alone else re.sub("(?<!\r)\r+\n", "\n", text)
        *whole, last = text.split("\n")
        for line in whole:
            number += 1
            yield _line("".join([*parts, line]) if parts else line, path, number, inner_returns)
            parts, length = [], 0
        parts.append(last)
        length += len(last)
        if length > LONGEST_LINE:
            raise DataError(
                f"{path}:{number + 1}: a line of more than {LONGEST_LINE:,} characters; is it the"
                " right file?"
            )
    if last_line := "".join(parts).rstrip("\r"):
        yield _line(last_line, path, number + 1, inner_returns)


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line that is not empty.

    Raises `DataError` naming a line that is not an object, or has a key twice.
    """
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=once)
        except Twice as error:
            raise DataError(
                f"{place}: the key {error} stands twice in one object; take one of them out"
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{place}: not JSON ({error}); a .jsonl file has one object on each line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: not an object; a .jsonl file has one object on each line")
        yield place, row


def lookup(row: Mapping[str, Any], key: str) -> Any:
    """The value under a key, or under "a.b" in the object under "a"; an existing key "a.b" wins.

    Raises `KeyError`.
    """
    if key in row:
        return row[key]
    for dot in reversed([i for i, character in enumerate(key) if character == "."]):
        inner = row.get(key[:dot])
        if isinstance(inner, Mapping):
            try:
                return lookup(inner, key[dot + 1 :])
            except KeyError:
                continue
    raise KeyError(key)


def dotted(row: Mapping[str, Any]) -> list[str]:
    """The keys of a row, and below each object the keys in it as "a.b"."""
    keys = list(row)
    for key, value in row.items():
        if isinstance(value, Mapping):
            keys += [f"{key}.{inner}" for inner in value]
    return keys


def checked_text(text: str, place: str) -> str:
    """A value from JSON or Parquet, with one kind of line end.

    Raises `DataError` for a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: not Unicode at character {error.start} (a lone surrogate); take the"
            " character out"
        ) from None
    return one_newline(text)


def one_newline(text: str) -> str:
    """The text with "\\n" for "\\r\\n" and "\\r"."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


class Twice(Exception):
    """A key that stands twice in one object."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object. Raises `Twice` where a key stands twice in it."""
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        raise Twice(ascii(next(key for key in keys if keys.count(key) > 1)))
    return row


def _line(line: str, path: Path, number: int, inner_returns: bool) -> str:
    if "\r" in line and not inner_returns:
        raise DataError(
            f"{path}:{number}: a carriage return within a line, where lines end otherwise; write a"
            " space or a newline for it"
        )
    return line.removeprefix(MARK) if number > 1 else line.lstrip(MARK)


def _at_starts(text: str, starts: bool) -> str:
    """The text without byte order marks at the start of its lines; `starts`: its first character
    starts a line.
    """
    if MARK not in text:
        return text
    text = text.replace("\n" + MARK, "\n")
    return text.removeprefix(MARK) if starts else text


def _decoded(path: Path) -> Iterator[str]:
    """The text of a file in pieces, none of which ends between "\\r" and "\\n"."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    rest, offset, newlines, place = "", 0, 0, 0
    with _open(path) as file:
        while True:
            chunk = _read(file, path, newlines)
            before, place = place, _place(file)
            advance(place - before)
            if not offset:
                _check_kind(path, chunk)
            text = rest + _decode(decoder, chunk, path, offset, newlines)
            offset += len(chunk)
            newlines += chunk.count(b"\n")
            whole = text.rstrip("\r") if chunk else text
            rest = text[len(whole) :]
            if whole:
                yield whole
            if not chunk:
                return


def _open(path: Path) -> IO[bytes]:
    try:
        return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _place(file: IO[bytes]) -> int:
    """How many bytes of it, as on disk, have been read."""
    return int((file.fileobj if isinstance(file, gzip.GzipFile) else file).tell())


def _read(file: IO[bytes], path: Path, newlines: int) -> bytes:
    try:
        return file.read(CHUNK)
    except (OSError, EOFError, zlib.error) as error:
        where = f" after line {newlines:,}" if newlines else ""
        raise DataError(
            f"{path}: cannot be read{where}: {error or type(error).__name__}; fetch it again"
        ) from None


def _check_kind(path: Path, start: bytes) -> None:
    """Raise `DataError` for the start of a file in another encoding, which would be misread or not
    read at all.
    """
    kind = next((name for mark, name in OTHERS.items() if start.startswith(mark)), None)
    if kind is None and start.count(0) * 4 > len(start):
        kind = "binary, or UTF-16"
    if kind == "gzip":
        raise DataError(f"{path}: it is compressed with gzip; let its name end in .gz")
    if kind is not None:
        raise DataError(f"{path}: {kind}, not UTF-8; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")


def _decode(
    decoder: codecs.IncrementalDecoder, chunk: bytes, path: Path, offset: int, newlines: int
) -> str:
    """The next piece of text.

    Raises `DataError` with the byte's offset in the file, and its line.
    """
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        place = offset - pending + error.start
        line = newlines + chunk[: max(0, error.start - pending)].count(b"\n") + 1
        raise DataError(
            f"{path}: not UTF-8 at byte offset {place} (byte 0x{error.object[error.start]:02x}) in"
            f" line {line:,}; save it as UTF-8"
        ) from None
