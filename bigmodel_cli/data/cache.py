"""Things that are costly to prepare, kept in the user's cache directory.

A cached folder is built beside its place and renamed into it: it is there whole, or not at all. One process builds, the
others wait for it; when the builder dies its lock falls, and the next one starts over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bigmodel_cli.errors import ResourceError
from bigmodel_cli.failpoints import failpoint


def cache_root() -> Path:
    """$XDG_CACHE_HOME/bigmodel, or ~/.cache/bigmodel (XDG Base Directory Specification 0.8)."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    return base / "bigmodel"


def cached(kind: str, key: str, build: Callable[[Path], None], good: Callable[[Path], bool]) -> Path:
    """The folder kind/key of the cache, built by `build` (given an empty folder) unless a good one is there.

    `good` says whether a folder that is there can be used; one that cannot is built anew. Raises `ResourceError` where the
    cache cannot be written.
    """
    folder = cache_root() / kind / key
    if folder.is_dir() and good(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{key}.lock")):
            if not (folder.is_dir() and good(folder)):
                _publish(folder, build)
    except OSError as error:
        raise ResourceError(
            f"{error.filename or folder}: the cache cannot be written: {os.strerror(error.errno or 0)}; make room there, or "
            "set XDG_CACHE_HOME to another directory"
        ) from None
    return folder


def _publish(folder: Path, build: Callable[[Path], None]) -> None:
    """Build beside the place, sync, rename. The lock is held, so whatever lies there is a dead builder's."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.mkdir()
    try:
        build(unfinished)
        for path in unfinished.iterdir():
            _sync(path)
        failpoint("cache.built")
        unfinished.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, waiting for it. It falls with the process, so the file that stays behind holds nobody up."""
    import fcntl

    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
