"""The inputs of `bigmodel attend`: words, names of files, texts of files, lines of stdin."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel_cli.commands.shared import with_a_first
from bigmodel_cli.console import say
from bigmodel_cli.errors import DataError, SpecError

if TYPE_CHECKING:
    from bigmodel_cli.loaded import Loaded


@dataclass(frozen=True)
class Given:
    """`words` are arguments or lines of stdin; `files` those of --file, each with its content."""

    words: list[str]
    files: list[tuple[Path, bytes]]

    def of(self, loaded: Loaded) -> list[str]:
        """All inputs in the form that the model reads: of files the texts, or, where it reads
        images or recordings, their names.

        Raises `SpecError` where stdin as a whole is given to a model that reads files.
        """
        from bigmodel_cli.data import input_of

        if not input_of(loaded.info).in_files:
            self._warn()
            # bytes that are not UTF-8 are for the reader to complain of
            return [*self.words, *(b.decode("utf-8", "surrogateescape") for _, b in self.files)]
        if any(str(path) == "-" for path, _ in self.files):
            raise SpecError(
                "--file - is a text, and this model reads files; name them, or give their names as"
                " lines of stdin, without --file"
            )
        return [*self.words, *(str(path) for path, _ in self.files)]

    def _warn(self) -> None:
        """Say that a model of texts reads the name of a file itself."""
        first = next((given for given in self.words if os.path.isfile(given)), None)
        if first is not None:
            say(
                f"warning: {first} names a file, and this model reads the words themselves; for its"
                f" text: --file {shlex.quote(first)}"
            )


def given_of(words: list[str] | None, files: list[Path] | None, *, from_stdin: bool) -> Given:
    """What is named, or else the lines of stdin. Raises `DataError` for a file that cannot be read,
    and `SpecError` where nothing is given.
    """
    from bigmodel_cli.data import lines_of

    found = [(path, _content(path)) for path in files or []]
    lines = not words and not found and from_stdin
    return Given(list(with_a_first(lines_of(sys.stdin.buffer)) if lines else words or []), found)


def _content(path: Path) -> bytes:
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise DataError(f"--file: {path}: cannot be read: {error.strerror}") from None
