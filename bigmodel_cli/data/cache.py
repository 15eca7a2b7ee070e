"""The cache of prepared data: keyed by content, published atomically, verified when opened, shared
by processes.

Each entry is a folder with a manifest: the size and SHA-256 of each of its files. A folder that
does not match its manifest is reported as damaged, and built anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigmodel_cli.cache_home import cache_directory, unwritable
from bigmodel_cli.console import say
from bigmodel_cli.data.hashes import content_hashes
from bigmodel_cli.disk import remove, sync
from bigmodel_cli.errors import DataError
from bigmodel_cli.failpoints import failpoint

MANIFEST = "manifest.json"
CONTENT = "content"
SMALL = 1 << 20
"""Folders of up to this many bytes are read at each opening; larger ones are remembered as whole
(`content_hashes`).
"""


def build_once(path: Path, build: Callable[[Path], None]) -> None:
    """Make the folder `path` by `build(draft folder)` unless it exists and is whole; one process
    builds, the others wait.

    The lock dies with its owner: where a builder was killed, the next one clears its draft and
    builds anew. Raises `ResourceError` where the cache cannot be written.
    """
    if os.path.isdir(path) and not _damage(path):
        return
    with _locked(path.with_name(f".{path.name}.lock")):
        if os.path.lexists(path):
            damage = _damage(path)
            if not damage:
                return
            say(f"warning: {path}: damaged ({damage}); building it again")
        draft = path.with_name(f".{path.name}.draft")
        remove(draft, ignore_errors=True)
        try:
            draft.mkdir()
            build(draft)
            _seal(draft, path)
            failpoint("cache.built")
            remove(path)
            os.rename(draft, path)
            sync(path.parent)
        except OSError as error:
            raise unwritable(path.parent, error) from None
        finally:
            remove(draft, ignore_errors=True)


def cached_folder(
    kind: str, key: str, what: str, told: Callable[[str], None], build: Callable[[Path], None]
) -> Path:
    """The folder that `build` made for this key; `told` is told `what` is done where it does not
    exist yet.
    """
    folder = cache_directory(kind) / key
    if not os.path.isdir(folder):
        told(f"{what} (once: kept in {folder.parent})")
    build_once(folder, build)
    return folder


def key_of(description: Any) -> str:
    """A hash that identifies JSON values."""
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def cached_bytes(kind: str, description: Any, make: Callable[[], bytes]) -> bytes:
    """The result of `make`, made once and identified by the JSON values `description`."""
    folder = cache_directory(kind) / key_of(description)

    def build(draft: Path) -> None:
        (draft / CONTENT).write_bytes(make())

    build_once(folder, build)
    return (folder / CONTENT).read_bytes()


def cached_json(kind: str, description: Any, make: Callable[[], Any]) -> Any:
    """As `cached_bytes`, for JSON values."""
    return json.loads(cached_bytes(kind, description, lambda: json.dumps(make()).encode()))


def _seal(draft: Path, path: Path) -> None:
    """Write the manifest of a draft that will be called `path`, and sync everything to disk."""
    files = sorted(draft.iterdir())
    for file in files:
        sync(file)
    hashes = content_hashes(files, [path / file.name for file in files])
    listed = {
        file.name: [file.stat().st_size, sha] for file, sha in zip(files, hashes, strict=True)
    }
    (draft / MANIFEST).write_text(json.dumps(listed), encoding="utf-8")
    sync(draft / MANIFEST)
    sync(draft)


def _damage(folder: Path) -> str:
    """What is wrong with a folder of the cache; '' where it matches its manifest."""
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())
        files = sorted(file for file in folder.iterdir() if file.name != MANIFEST)
        if not isinstance(listed, dict) or not listed:
            return f"its {MANIFEST} lists nothing"
        if listed.keys() != {file.name for file in files}:
            return "it does not hold the files that it should"
        sizes = [file.stat().st_size for file in files]
        for file, size in zip(files, sizes, strict=True):
            if listed[file.name][0] != size:
                return f"{file.name} is {size:,} bytes long"
        small = sum(sizes) <= SMALL
        read = (
            [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
            if small
            else content_hashes(files)
        )
        changed = [
            f.name for f, sha in zip(files, read, strict=True) if listed[f.name][1:] != [sha]
        ]
    except (OSError, DataError, ValueError, TypeError, LookupError, RecursionError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{changed[0]} was changed" if changed else ""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        file = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise unwritable(path.parent, error) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


__all__ = [
    "build_once",
    "cache_directory",
    "cached_bytes",
    "cached_folder",
    "cached_json",
    "key_of",
]
