"""Text files as a stream of documents, in constant memory."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.hashes import check_unchanged, content_hashes
from bigmodel_cli.errors import DataError

CHUNK = 1 << 20
FORMAT = 2  # of the cached surveys
ENDINGS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".py", ".md", ".rst")


@dataclass(frozen=True)
class Corpus:
    """Files in order; each .jsonl row, and each other file, is a document."""

    files: tuple[Path, ...]
    field: str = "text"

    def documents(self) -> Iterator[Iterator[str]]:
        """Each document as an iterator over pieces of its text. Raises `DataError` for what is not UTF-8 or not JSON."""
        for path in self.files:
            if has_rows(path):
                yield from (iter([text]) for text in self.rows(path))
            else:
                yield self.pieces(path)

    def pieces(self, path: Path) -> Iterator[str]:
        """The text of a file, about a million bytes at a time, cut after a line where there is one."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        kept, offset = "", 0
        with _open(path) as file:
            while True:
                chunk = _read(file, path)
                text = kept + _decode(decoder, chunk, path, offset)
                offset += len(chunk)
                if not chunk:
                    break
                cut = text.rfind("\n") + 1 or len(text)
                kept = text[cut:]
                yield text[:cut]
        if text:
            yield text

    def rows(self, path: Path) -> Iterator[str]:
        """The text field of each row of a .jsonl file."""
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: not UTF-8 at byte {error.start} of the line; save it as UTF-8"
                    ) from None
                except ValueError as error:
                    raise DataError(f"{path}:{number}: not JSON ({error})") from None
                if not isinstance(row, dict) or not isinstance(row.get(self.field), str):
                    raise DataError(f"{path}:{number}: no text under the key {self.field!r}; name it with data.field")
                yield row[self.field]


@dataclass(frozen=True, kw_only=True)
class Texts(Corpus):
    """Texts that are rows, as documents: what a tokenizer is fitted on."""

    source: Callable[[], Iterator[str]]

    def documents(self) -> Iterator[Iterator[str]]:
        """Each text by itself."""
        return (iter([text]) for text in self.source())


def has_rows(path: Path) -> bool:
    """Whether each line of a file is a document: .jsonl, also packed."""
    return ".jsonl" in path.name.lower()


@dataclass
class Survey:
    """What one pass over a corpus finds: a digest of its documents, how much there is, which characters, each file's hash."""

    digest: str = ""
    characters: int = 0
    documents: int = 0
    symbols: str = ""
    hashes: list[str] = field(default_factory=list)


def survey(corpus: Corpus) -> Survey:
    """Read the corpus once. The result is kept in the cache by the content of the files."""
    hashes = content_hashes(corpus.files)
    forms = [[has_rows(path), path.name.lower().endswith(".gz")] for path in corpus.files]

    def read() -> dict[str, Any]:
        found, sha, seen = Survey(hashes=hashes), hashlib.sha256(), set[str]()
        for document in corpus.documents():
            found.documents += 1
            for text in document:
                sha.update(text.encode("utf-8"))
                found.characters += len(text)
                seen.update(text)
            sha.update(b"\xff")  # no byte of UTF-8: the end of a document
        found.digest, found.symbols = sha.hexdigest(), "".join(sorted(seen))
        check_unchanged(corpus.files, hashes)
        return asdict(found)

    return Survey(**cached_json("surveys", ["text", FORMAT, hashes, forms, corpus.field], read))


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


def _open(path: Path) -> IO[bytes]:
    try:
        return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _read(file: IO[bytes], path: Path) -> bytes:
    try:
        return file.read(CHUNK)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, path: Path, offset: int) -> str:
    """The next piece of text. Raises `DataError` with the byte's offset in the file."""
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        place = offset - pending + error.start
        raise DataError(
            f"{path}: not UTF-8 at byte offset {place} (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from None
