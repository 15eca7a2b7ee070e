"""The content of files as SHA-256, remembered so that a second start over many files reads none of
them.

A hash is remembered under the file's absolute path, size, time of modification, time of change and
inode. `os.utime` puts size and modification time back, but never the time of change. A file that
was changed so shortly before it was read that a later change could bear the same time is not
remembered (git calls such an entry "racily clean"): it is read again at the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigmodel_cli.cache_home import cache_directory
from bigmodel_cli.console import counted, quantity, say
from bigmodel_cli.errors import DataError
from bigmodel_cli.progress import Progress, progress

STORE = "content-1.sqlite"
TICK = 20_000_000
"""Nanoseconds within which two changes of a file may bear the same time: more than a tick of the
kernel's clock (1 to 10 ms).
"""
COARSE_TICK = 2_000_000_000
"""The same where times are whole seconds, as on FAT (2 s), HFS+ and old NFS."""
CHUNK = 500  # files in one query
PIECE = 1 << 20  # bytes
WORTH_SAYING = 1 << 30  # bytes


def content_hashes(paths: Sequence[Path], known_as: Sequence[Path] | None = None) -> list[str]:
    """The SHA-256 of each file's content as hexadecimal digits, read or remembered.

    `known_as` are the paths that the files will have, under which they are then remembered. Raises
    `DataError` naming a file that cannot be read.
    """
    here = os.getcwd()
    names = [os.fsencode(os.path.join(here, path)) for path in known_as or paths]
    stats = [_stat(path) for path in paths]
    store = _Store(cache_directory("hashes") / STORE)
    known = store.read(names)
    hashes = [
        known[name][:32].hex() if name in known and _is_of(known[name], name, stat) else ""
        for name, stat in zip(names, stats, strict=True)
    ]
    unknown = [index for index, value in enumerate(hashes) if not value]
    size = sum(stats[index].st_size for index in unknown)
    if size >= WORTH_SAYING:
        say(
            f"hashing {counted(len(unknown), 'file')}, {quantity(size, 'B')}, to know the content"
            " (once)"
        )
    fresh: dict[bytes, bytes] = {}
    try:
        with progress("hashing files", size, "B") as shown:
            for index in unknown:
                sha, stat = _read(paths[index], shown)
                hashes[index] = sha.hex()
                if stat is not None:
                    fresh[names[index]] = _entry(names[index], stat, sha)
    finally:  # also remember what was read before a signal
        store.write(fresh)
    return hashes


def check_unchanged(paths: Sequence[Path], hashes: Sequence[str]) -> None:
    """Raise `DataError` for a file whose content is no longer what was hashed."""
    for path, before, now in zip(paths, hashes, content_hashes(paths), strict=True):
        if before != now:
            raise DataError(
                f"{path}: changed while it was read; start again when nothing writes to it"
            )


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _read(path: Path, shown: Progress) -> tuple[bytes, os.stat_result | None]:
    """The SHA-256 of a file, and its key, None where it changed a moment ago or meanwhile."""
    now = time.time_ns()
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            sha = hashlib.sha256()
            while chunk := file.read(PIECE):
                sha.update(chunk)
                shown.add(len(chunk))
            after = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    newest = max(stat.st_mtime_ns, stat.st_ctime_ns)
    whole_seconds = stat.st_mtime_ns % 10**9 == stat.st_ctime_ns % 10**9 == 0
    settled = newest + (COARSE_TICK if whole_seconds else TICK) < now
    return sha.digest(), stat if settled and _form(stat) == _form(after) else None


def _form(stat: os.stat_result) -> bytes:
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}".encode()


def _entry(name: bytes, stat: os.stat_result, sha: bytes) -> bytes:
    """A stored entry: the hash (32 bytes), and a check (16) of it together with its key."""
    return sha + hashlib.blake2b(b"\0".join((name, _form(stat), sha)), digest_size=16).digest()


def _is_of(entry: bytes, name: bytes, stat: os.stat_result) -> bool:
    """Whether an entry is whole, and of this file as it is now."""
    return len(entry) == 48 and entry == _entry(name, stat, entry[:32])


class _Store:
    """A table of entries by path.

    It only saves time: where it cannot be used, everything is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """The entries that exist for these names."""
        entries: dict[bytes, bytes] = {}
        if not os.path.exists(self.path):
            return entries
        with self._forgiving("read"), self._opened() as table:
            for first in range(0, len(names), CHUNK):
                chunk = names[first : first + CHUNK]
                places = ",".join("?" * len(chunk))
                rows = table.execute(
                    f"SELECT path, entry FROM content WHERE path IN ({places})", chunk
                )
                entries.update((row[0], row[1]) for row in rows if isinstance(row[1], bytes))
        return entries

    def write(self, entries: dict[bytes, bytes]) -> None:
        """Write entries, replacing those of the same names."""
        if not entries:
            return
        with self._forgiving("written"), self._opened() as table, table:
            table.execute(
                "CREATE TABLE IF NOT EXISTS content (path BLOB PRIMARY KEY, entry BLOB) WITHOUT"
                " ROWID"
            )
            table.executemany("INSERT OR REPLACE INTO content VALUES (?, ?)", entries.items())

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as table:
            table.text_factory = bytes
            yield table

    @contextlib.contextmanager
    def _forgiving(self, done: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            passing = (
                isinstance(error, OSError)
                or getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING
            )
            say(
                f"warning: {self.path}: the stored hashes of files cannot be {done} ({error}); "
                + ("they are read again" if passing else "a new one is begun")
            )
            if not passing:
                for path in (self.path, Path(f"{self.path}-journal")):
                    with contextlib.suppress(OSError):
                        path.unlink()


_PASSING = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
"""Faults of the system and not of the table, which may be whole."""
