"""The cache of shards: files that can be fetched or made again, never more than a bound of bytes.

Shared by threads, loader workers, processes and runs. What a file will take is reserved before its
first byte comes: room is made by removing what was not used for the longest time and is not being
read, and where that is not enough, it is waited for. So the bound holds at each moment, whoever
fetches what. Who makes a file never waits for the room of another, so that waiting ends.

Each file is written under a draft's name, which holds its size, and renamed. Drafts and files in
use are locked (flock): a lock dies with its owner, so that what a killed process left is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bigmodel_cli.cache_home import cache_directory, unwritable
from bigmodel_cli.console import quantity, say
from bigmodel_cli.errors import DataError, ResourceError
from bigmodel_cli.failpoints import failpoint

DEFAULT = 10 * 10**9  # bytes
FRESH = 1.0
"""Seconds for which a use is not noted again."""
PAUSE = 0.02
"""Seconds between two looks whether there is room."""
MANY_LOOKS = 1500
"""So many looks later that it is waited for is said."""
DRAFT, LOCK = "draft-", "lock"
Make = Callable[[io.FileIO], object]
"""Fills an empty file. It must not ask the cache for another: two that wait for one another would
wait for ever."""

_opened: set[io.FileIO] = set()
_numbers = itertools.count()


def _forget() -> None:
    """In a forked process: close what the other's threads have open, whose locks and room would
    otherwise live on here.
    """
    for file in list(_opened):
        file.close()
    _opened.clear()


os.register_at_fork(after_in_child=_forget)


class _Elsewhere(Exception):
    """Another makes the file."""

    def __init__(self, draft: Path) -> None:
        super().__init__(draft)
        self.draft = draft


class _Full(Exception):
    """There is no room at the moment."""


@dataclass
class _Survey:
    """What the cache holds: the bytes reserved by drafts, files by age, and drafts by name."""

    reserved: int = 0
    files: list[tuple[int, int, Path]] = field(default_factory=list)
    drafts: dict[str, Path] = field(default_factory=dict)


class ShardCache:
    """Files by key, of at most `limit` bytes in all, with those that are being made."""

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder or cache_directory("shards")
        self.noted: dict[str, float] = {}

    @contextlib.contextmanager
    def held(self, key: str, size: int, make: Make) -> Iterator[Path]:
        """The file of this key, made where it is not there, and not removed meanwhile.

        `size` is at least what it, and what `make` keeps beside it, will take. Raises
        `ResourceError` where the limit is too small for it, or the disk cannot be written.
        """
        name, looks = _name(key), 0
        with contextlib.ExitStack() as stack:
            while not self._pinned(name, stack):
                try:
                    if self._made(name, size, make, stack):
                        break
                except _Elsewhere as other:
                    _wait_for(other.draft)
                except _Full:
                    looks += 1
                    if looks == MANY_LOOKS:
                        say(
                            f"{self.folder}: waiting for room: other processes read or fetch as"
                            f" much as {quantity(self.limit, 'B')} (data.cache_bytes) hold"
                        )
                    time.sleep(PAUSE)
            yield self.folder / name

    def prepare(self, key: str, size: int, make: Make) -> None:
        """Make the file of this key, unless it is there, or another makes it just now."""
        name = _name(key)
        while not (self.folder / name).exists():
            try:
                with contextlib.ExitStack() as stack:
                    self._made(name, size, make, stack)
            except _Elsewhere:
                return
            except _Full:
                time.sleep(PAUSE)

    def keep(self, key: str) -> None:
        """The file of this key counts as used now."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / _name(key))

    def put(self, key: str, data: bytes) -> None:
        """Keep these bytes under this key."""
        self.prepare(key, len(data), lambda file: write(file, data))

    @contextlib.contextmanager
    def spare(self) -> Iterator[io.FileIO]:
        """An empty file beside one that is being made, which counts as a part of it."""
        path = self.folder / f"{DRAFT}spare.{os.getpid()}.{next(_numbers)}-0"
        with contextlib.ExitStack() as stack:
            with self._locked():
                file = stack.enter_context(_draft(path))
            stack.callback(path.unlink, missing_ok=True)
            yield file

    def _pinned(self, name: str, stack: contextlib.ExitStack) -> bool:
        """Whether the file is there; it is then kept until the stack is left."""
        path = self.folder / name
        with contextlib.ExitStack() as own:
            try:
                file = own.enter_context(_open(path))
            except FileNotFoundError:
                return False
            fcntl.flock(file, fcntl.LOCK_SH)
            if not os.fstat(file.fileno()).st_nlink:  # removed between both
                return False
            self._note(name, path)
            stack.enter_context(own.pop_all())
        return True

    def _note(self, name: str, path: Path) -> None:
        """The file counts as used now."""
        now = time.monotonic()
        if now - self.noted.get(name, -FRESH) < FRESH:
            return
        with contextlib.suppress(OSError):
            os.utime(path)
        if len(self.noted) > 10_000:
            self.noted.clear()
        self.noted[name] = now

    def _made(self, name: str, size: int, make: Make, stack: contextlib.ExitStack) -> bool:
        """Make the file, and keep it until the stack is left; False where that is to be tried
        again.

        Raises `_Elsewhere` and `_Full`.
        """
        if size > self.limit:
            raise ResourceError(
                f"data.cache_bytes: {quantity(self.limit, 'B')} do not hold one shard of"
                f" {quantity(size, 'B')}; make it larger, or the shards smaller (bigmodel pack)"
            )
        path, draft = self.folder / name, self.folder / f"{DRAFT}{name}-{size}"
        try:
            with contextlib.ExitStack() as own:
                with self._locked():
                    if path.exists():
                        return False
                    self._reserve(name, size)
                    file = own.enter_context(_draft(draft))
                try:
                    make(file)
                    if os.fstat(file.fileno()).st_size > size:
                        raise DataError(f"{path}: more bytes than were foreseen ({size:,})")
                    failpoint("shards.made")
                    with self._locked():  # so that whoever counts sees it once
                        os.rename(draft, path)
                        fcntl.flock(file, fcntl.LOCK_SH)
                except BaseException:
                    draft.unlink(missing_ok=True)
                    raise
                stack.enter_context(own.pop_all())
        except OSError as error:
            raise unwritable(self.folder, error) from None
        self.noted.pop(name, None)
        return True

    def _reserve(self, name: str, size: int) -> None:
        """Remove what was not used for the longest time, until `size` bytes are free."""
        found = self._survey()
        if name in found.drafts:
            raise _Elsewhere(found.drafts[name])
        if found.reserved + size > self.limit:  # whatever were removed
            raise _Full
        used = found.reserved + sum(own for _, own, _ in found.files)
        for _, own, path in sorted(found.files):
            if used + size <= self.limit:
                return
            if _removed(path):
                used -= own
        if used + size > self.limit:
            raise _Full

    def _survey(self) -> _Survey:
        """What there is; drafts whose makers are gone are removed."""
        found = _Survey()
        for entry in os.scandir(self.folder):
            path = Path(entry.path)
            try:
                if entry.name.startswith(DRAFT):
                    if _removed(path):
                        continue
                    _, name, size = entry.name.split("-")
                    found.drafts[name] = path
                    found.reserved += int(size)
                elif not entry.name.startswith(LOCK):
                    stat = entry.stat()
                    found.files.append((stat.st_mtime_ns, stat.st_size, path))
            except (FileNotFoundError, ValueError):
                continue
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all that count, reserve and remove."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _open(self.folder / LOCK, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[io.FileIO]:
    """A new file, locked: whoever sees it knows that it is being made."""
    with _open(path, "x+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@contextlib.contextmanager
def _open(path: Path, mode: str = "r") -> Iterator[io.FileIO]:
    """A file without a buffer, unlocked before it is closed, whoever else has it open."""
    file = io.FileIO(path, mode)
    _opened.add(file)
    try:
        yield file
    finally:
        _opened.discard(file)
        if not file.closed:
            fcntl.flock(file, fcntl.LOCK_UN)
            file.close()


def _removed(path: Path) -> bool:
    """Whether a file was not in use, and is removed."""
    try:
        with _open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True


def _wait_for(draft: Path) -> None:
    """Wait until its maker has ended."""
    with contextlib.suppress(FileNotFoundError), _open(draft) as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def write(file: io.FileIO, data: bytes) -> None:
    """Write all bytes, however many the system takes at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _name(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:40]
