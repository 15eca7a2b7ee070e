"""Syncing to disk, and removing."""

from __future__ import annotations

import contextlib
import os
import shutil
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
