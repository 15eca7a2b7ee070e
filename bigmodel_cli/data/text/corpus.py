"""Text files as a stream of documents, in constant memory."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.hashes import check_unchanged, content_hashes
from bigmodel_cli.data.reading import (
    FORMAT,
    checked_text,
    dotted,
    is_json_lines,
    json_rows,
    lookup,
    pieces,
)
from bigmodel_cli.errors import DataError, did_you_mean
from bigmodel_cli.progress import reading

SURVEY = 3  # the format of the cached surveys
ENDS = 2
"""Documents of rows of text: a tokenizer that is fitted on several has a token for their ends."""
ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".py", ".md", ".rst")


@dataclass(frozen=True)
class Corpus:
    """Files in order; each .jsonl row, and each other file, is a document."""

    files: tuple[Path, ...]
    field: str = "text"

    def documents(self) -> Iterator[Iterator[str]]:
        """Each document as an iterator over pieces of its text.

        Raises `DataError` for what is not UTF-8 or not JSON.
        """
        for path in self.files:
            if is_json_lines(path):
                yield from (iter([text]) for text in self.rows(path))
            else:
                yield pieces(path)

    def rows(self, path: Path) -> Iterator[str]:
        """The text of each row of a .jsonl file; its key may be one of nested objects, a.b."""
        for place, row in json_rows(path):
            text, near = None, ""
            try:
                text = lookup(row, self.field)
            except KeyError:
                near = did_you_mean(self.field, dotted(row))
            if not isinstance(text, str):
                raise DataError(
                    f"{place}: no text under the key {self.field!r}; name it with data.field{near}"
                )
            yield checked_text(text, place)


@dataclass(frozen=True, kw_only=True)
class Texts(Corpus):
    """Rows of text as documents: what a tokenizer is fitted on."""

    source: Callable[[], Iterator[str]]

    def documents(self) -> Iterator[Iterator[str]]:
        """Each text as a document."""
        return (iter([text]) for text in self.source())


@dataclass
class Survey:
    """The result of one pass over a corpus: digest, size, characters, and each file's hash.

    `lengths` are those of the documents, in characters.
    """

    digest: str = ""
    characters: int = 0
    documents: int = 0
    symbols: str = ""
    lengths: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)


def survey(corpus: Corpus) -> Survey:
    """Read the corpus once.

    The result is cached by the content of the files.
    """
    hashes = content_hashes(corpus.files)
    forms = [[is_json_lines(path), path.name.lower().endswith(".gz")] for path in corpus.files]

    def read() -> dict[str, Any]:
        result, sha, seen = Survey(hashes=hashes), hashlib.sha256(), set[str]()
        with reading("reading the text", corpus.files):
            for document in corpus.documents():
                result.documents += 1
                before = result.characters
                for text in document:
                    sha.update(text.encode("utf-8"))
                    result.characters += len(text)
                    seen.update(text)
                sha.update(b"\xff")  # not a byte of UTF-8: the end of a document
                result.lengths.append(result.characters - before)
        result.digest, result.symbols = sha.hexdigest(), "".join(sorted(seen))
        check_unchanged(corpus.files, hashes)
        return asdict(result)

    return Survey(
        **cached_json("surveys", ["text", SURVEY, FORMAT, hashes, forms, corpus.field], read)
    )


SKIPPED = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("lib2to3", "idlelib", "turtledemo"),
}
"""Folders of the standard library that are no part of the built-in corpus."""


def standard_library(max_bytes: int) -> tuple[Path, ...]:
    """Modules of this Python's standard library (source with its documentation), up to `max_bytes`
    in all.

    Tests are left out. The order is by a hash of the name, so that the first few million bytes are
    of every kind.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    names = []
    for folder, inner, found in os.walk(root):
        # not walked through: installed packages are a hundred times as many files
        inner[:] = [n for n in inner if n not in SKIPPED and not n.startswith("config-")]
        own = Path(folder).relative_to(root)
        names += [own / name for name in found if name.endswith(".py")]
    chosen: list[Path] = []
    size = 0
    for name in sorted(names, key=lambda n: hashlib.sha256(n.as_posix().encode()).digest()):
        size += (root / name).stat().st_size
        if size > max_bytes and chosen:
            break
        chosen.append(root / name)
    if not chosen:
        raise DataError(
            f"{root}: the standard library's source is not there; use data.type: text with files of"
            " your own"
        )
    return tuple(chosen)
