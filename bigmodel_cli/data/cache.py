"""The cache of prepared data: keyed by content, published atomically, safe for several processes at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bigmodel_cli.errors import ResourceError
from bigmodel_cli.failpoints import failpoint


def cache_directory(kind: str) -> Path:
    """The folder for one kind of prepared data below $XDG_CACHE_HOME (else ~/.cache), made where it is missing."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    path = home / "bigmodel" / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None
    return path


def publish(path: Path, content: bytes) -> None:
    """Write a file of the cache so that readers see all of it or nothing."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise _unwritable(path.parent, error) from None


def build_once(path: Path, build: Callable[[Path], None]) -> None:
    """Make the folder `path` by `build(draft folder)` unless it is there; one process builds, the others wait.

    The lock dies with its owner: where a builder was killed, the next one clears its draft and builds anew.
    """
    if path.is_dir():
        return
    with _locked(path.with_name(f".{path.name}.lock")):
        if path.is_dir():
            return
        draft = path.with_name(f".{path.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir()
            build(draft)
            failpoint("cache.built")
            os.rename(draft, path)
        except OSError as error:
            raise _unwritable(path.parent, error) from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unwritable(path: Path, error: OSError) -> ResourceError:
    reason = os.strerror(error.errno or 0)
    return ResourceError(f"{path}: the cache cannot be written: {reason}; make room there, or set XDG_CACHE_HOME")
