"""Syncing to disk, and removing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, even after a power cut."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def refusal(path: Path) -> str:
    """Why a path cannot be read ("cannot be read: Permission denied"); "" where it can, or does not
    exist.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return ""
    except OSError as error:
        return f"cannot be read: {os.strerror(error.errno or 0)}"
    return ""


def remove(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove whatever is at this path, a folder with its content; nothing there is fine.

    `shutil.rmtree` opens its argument before it checks whether that is a folder, and waits for ever
    for a FIFO's other end.
    """
    if os.path.isdir(path) and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(OSError) if ignore_errors else contextlib.nullcontext():
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(draft: Path) -> Iterator[None]:
    """Inside, the folder is known as one that a living process writes: see `remove_drafts`."""
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def draft_of(target: Path) -> Path:
    """Where this process writes a folder before it gets its name."""
    return target.with_name(f".draft-{target.name}-{os.getpid()}")


def remove_drafts(target: Path) -> None:
    """Remove the drafts of this folder whose processes were killed.

    A process's number may live again in another one, so it is the lock that tells.
    """
    stem = f".draft-{target.name}-"
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if name.startswith(stem) and name.removeprefix(stem).isdigit():
                _remove_if_left(target.with_name(name))


def _remove_if_left(draft: Path) -> None:
    with contextlib.suppress(OSError):  # another user's, or one that is held
        descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(draft, ignore_errors=True)
        finally:
            os.close(descriptor)
