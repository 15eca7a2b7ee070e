"""The cache of shards: files that can be fetched or made again, within a bound of bytes.

Shared by processes and their loader workers. A file is made under a name of its own and renamed;
the room that it will take is kept free from before its first byte, by removing those that were not
used for the longest time. Drafts whose makers were killed are known by their locks, and removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from bigmodel_cli.cache_home import cache_directory, unwritable
from bigmodel_cli.console import quantity
from bigmodel_cli.errors import DataError, ResourceError
from bigmodel_cli.failpoints import failpoint

DEFAULT = 10 * 10**9  # bytes
LOCKS = 64
"""Lock files by the first digits of a key: so many files are made at a time."""
FRESH = 1.0
"""Seconds for which a use is not noted again."""
DRAFT = "draft-"


class ShardCache:
    """Files by key, of at most `limit` bytes in all, drafts included."""

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder or cache_directory("shards")
        self.noted: dict[str, float] = {}

    def found(self, key: str) -> Path | None:
        """The file of this key where it is there; it then counts as used now."""
        name = _name(key)
        path = self.folder / name
        return path if self._use(name, path) else None

    def get(self, key: str, size: int, make: Callable[[IO[bytes]], None]) -> Path:
        """The file of this key, made by `make(empty file)` where it is not there.

        `size` is at least what it will have. `make` must not ask this cache for another file: two
        that wait for one another would wait for ever. Raises `ResourceError` where the limit is too
        small for it, or the disk cannot be written.
        """
        self._check(size)
        return self._locked_get(key, lambda name, path: self._make(name, path, size, make))

    def get_content(self, key: str, content: Callable[[], bytes]) -> Path:
        """The same for content that is made in memory, whose size is then known."""

        def make(name: str, path: Path) -> None:
            data = content()
            self._check(len(data))

            def write(file: IO[bytes]) -> None:
                file.write(data)

            self._make(name, path, len(data), write)

        return self._locked_get(key, make)

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise ResourceError(
                f"data.cache_bytes: {quantity(self.limit, 'B')} do not hold one shard of"
                f" {quantity(size, 'B')}; make it larger, or the shards smaller (bigmodel pack)"
            )

    def _locked_get(self, key: str, make: Callable[[str, Path], None]) -> Path:
        name = _name(key)
        path = self.folder / name
        if self._use(name, path):
            return path
        try:
            with self._locked(f"lock-{int(name[:4], 16) % LOCKS:02d}"):
                if not self._use(name, path):
                    make(name, path)
        except FileNotFoundError:  # what it is made from was removed meanwhile
            raise
        except OSError as error:
            raise unwritable(self.folder, error) from None
        return path

    def _use(self, name: str, path: Path) -> bool:
        """Whether the file is there; it then counts as used now."""
        now = time.monotonic()
        if now - self.noted.get(name, -FRESH) < FRESH:
            return path.exists()
        try:
            os.utime(path)
        except OSError:
            return False
        self.noted[name] = now
        if len(self.noted) > 10_000:
            self.noted.clear()
        return True

    def _make(self, name: str, path: Path, size: int, make: Callable[[IO[bytes]], None]) -> None:
        draft = self.folder / f"{DRAFT}{size}-{name}-{os.getpid()}-{threading.get_ident()}"
        with contextlib.ExitStack() as stack:
            with self._locked("lock"):
                self._free(size)
                file = stack.enter_context(open(draft, "w+b"))
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                make(file)
                file.flush()
                if file.seek(0, os.SEEK_END) > size:
                    raise DataError(f"{path}: more bytes than were foreseen ({size:,})")
                failpoint("shards.made")
                os.rename(draft, path)
            finally:
                draft.unlink(missing_ok=True)
        self.noted.pop(name, None)

    def _free(self, size: int) -> None:
        """Remove what was not used for the longest time, until `size` bytes are free."""
        used, files = 0, []
        for entry in os.scandir(self.folder):
            try:
                if entry.name.startswith("lock"):
                    continue
                if entry.name.startswith(DRAFT):
                    used += self._reserved(Path(entry.path), entry.name)
                    continue
                stat = entry.stat()
            except FileNotFoundError:
                continue
            used += stat.st_size
            files.append((stat.st_mtime_ns, stat.st_size, entry.path))
        for _, own, path in sorted(files):
            if used + size <= self.limit:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            used -= own

    def _reserved(self, path: Path, name: str) -> int:
        """The bytes that a draft will have; 0 of one whose maker is gone, which is removed."""
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return int(name.split("-")[1])
        path.unlink(missing_ok=True)
        return 0

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.folder / name, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _name(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:40]
