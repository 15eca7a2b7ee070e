"""Text files as a stream of documents, in constant memory."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bigmodel_cli.data.cache import cache_directory, publish
from bigmodel_cli.data.reading import FORMAT, checked_text, dotted, is_json_lines, json_rows, lookup, pieces
from bigmodel_cli.errors import DataError, did_you_mean

ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".py", ".md", ".rst")


@dataclass(frozen=True)
class Corpus:
    """Files in order; each .jsonl row, and each other file, is a document."""

    files: tuple[Path, ...]
    field: str = "text"

    def documents(self) -> Iterator[Iterator[str]]:
        """Each document as an iterator over pieces of its text. Raises `DataError` for what is not UTF-8 or not JSON."""
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
                raise DataError(f"{place}: no text under the key {self.field!r}; name it with data.field{near}")
            yield checked_text(text, place)


@dataclass(frozen=True, kw_only=True)
class Texts(Corpus):
    """Texts that are rows, as documents: what a tokenizer is fitted on."""

    source: Callable[[], Iterator[str]]

    def documents(self) -> Iterator[Iterator[str]]:
        """Each text by itself."""
        return (iter([text]) for text in self.source())


@dataclass
class Survey:
    """What one pass over a corpus finds: a digest of its documents, how much there is, and which characters.

    `lengths` are those of the documents, in characters.
    """

    digest: str = ""
    characters: int = 0
    documents: int = 0
    symbols: str = ""
    lengths: list[int] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


def survey(corpus: Corpus) -> Survey:
    """Read the corpus once. The result is kept by path, size and time of change of the files, in the cache."""
    stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in corpus.files]
    key = hashlib.sha256(json.dumps([FORMAT, stats, corpus.field]).encode()).hexdigest()
    kept = cache_directory("surveys") / f"{key}.json"
    if kept.exists():
        values = json.loads(kept.read_text(encoding="utf-8"))
        return Survey(**values)
    found, sha = Survey(), hashlib.sha256()
    for document in corpus.documents():
        found.documents += 1
        before = found.characters
        for text in document:
            sha.update(text.encode("utf-8"))
            found.characters += len(text)
            found.seen.update(text)
        sha.update(b"\xff")  # no byte of UTF-8: the end of a document
        found.lengths.append(found.characters - before)
    found.digest, found.symbols = sha.hexdigest(), "".join(sorted(found.seen))
    values = {k: getattr(found, k) for k in ("digest", "characters", "documents", "symbols", "lengths")}
    publish(kept, json.dumps(values).encode())
    return found


def find_files(names: Iterable[str], base: Path, option: str, endings: tuple[str, ...] = ENDINGS) -> tuple[Path, ...]:
    """The files that paths, globs and folders name, in sorted order; of a folder those with one of the endings.

    Raises `DataError` for a name that finds nothing.
    """
    found: list[Path] = []
    for name in names:
        path = base / name
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(endings))
            if not matches:
                raise DataError(f"{option}: the folder {name} holds no file that ends in {', '.join(endings)}")
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
            if not matches:
                raise DataError(f"{option}: {name}: no such file")
        found += matches
    return tuple(dict.fromkeys(found))


def standard_library(max_bytes: int) -> tuple[Path, ...]:
    """Modules of this Python's standard library (source with its documentation), up to `max_bytes` in all.

    Tests are left out. The order is by a hash of the name, so that the first few million bytes are of every kind.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "lib2to3",
        "idlelib",
        "turtledemo",
    }
    names = [p.relative_to(root) for p in root.rglob("*.py")]
    names = [
        n for n in names if not skipped & set(n.parts[:-1]) and not any(part.startswith("config-") for part in n.parts)
    ]
    chosen: list[Path] = []
    size = 0
    for name in sorted(names, key=lambda n: hashlib.sha256(n.as_posix().encode()).digest()):
        size += (root / name).stat().st_size
        if size > max_bytes and chosen:
            break
        chosen.append(root / name)
    if not chosen:
        raise DataError(
            f"{root}: the standard library's source is not there; use data.type: text with files of your own"
        )
    return tuple(chosen)
