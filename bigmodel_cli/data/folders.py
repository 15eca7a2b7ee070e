"""What is in folders: files below them, links too, without what is hidden or left by systems."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bigmodel_cli.console import counted, say
from bigmodel_cli.errors import DataError, MissingData

LEFT_BY_SYSTEMS = ("__macosx", "thumbs.db", "desktop.ini")


def passed_over(name: str) -> bool:
    """Whether a file or folder of that name is ignored where it was not named itself."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def walk(folder: Path, endings: tuple[str, ...] = ()) -> list[Path]:
    """All files below a folder, or those with one of the endings (in lower case), sorted.

    Real folders come before links, so that what both lead to is known by its own name. Raises
    `DataError` naming a link that leads nowhere, or a folder that cannot be read.
    """
    files: list[str] = []
    seen: set[tuple[int, int]] = set()  # folders, and files that links lead to
    real: set[tuple[int, int]] = set()
    folders, links, again = [str(folder)], list[str](), 0
    while folders or links:
        linked = not folders
        path = folders.pop() if folders else links.pop(0)
        status = status_of(path)
        place = (status.st_dev, status.st_ino)
        if place in seen or place in real or (linked and _is_above(path)):
            again += linked
            continue
        seen.add(place)
        if not stat.S_ISDIR(status.st_mode):
            files += (
                [path]
                if stat.S_ISREG(status.st_mode) and path.lower().endswith(endings or "")
                else []
            )
            continue
        for entry in _entries(path):
            if entry.is_symlink():
                links.append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_file(follow_symlinks=False) and entry.name.lower().endswith(
                endings or ""
            ):
                own = (status.st_dev, entry.inode())
                files += [entry.path] if own not in seen else []
                again += own in seen
                real.add(own)
    if again:
        skipped = counted(again, "link")
        say(f"{folder}: skipped {skipped} to what is below it already, or above it")
    return [Path(path) for path in sorted(files, key=lambda path: path.split(os.sep))]


def _is_above(link: str) -> bool:
    """Whether a link leads to a folder that contains it."""
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath((target, here)) == target


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, linked ones too, sorted.

    Raises `DataError` as `walk` does.
    """
    folders = [e.path for e in _entries(str(folder)) if stat.S_ISDIR(status_of(e.path).st_mode)]
    return [Path(path) for path in sorted(folders)]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder and not ignored, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not passed_over(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise _unreadable(folder, error) from None


def status_of(path: str) -> os.stat_result:
    """What the system knows of a path.

    Raises `DataError` naming a link that leads nowhere, or what cannot be read.
    """
    try:
        return os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            target = os.readlink(path)
            raise DataError(
                f"{path}: a link to {target}, which is not there; mend it or take it away"
            ) from None
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> DataError:
    kind = MissingData if isinstance(error, FileNotFoundError) else DataError
    return kind(f"{path}: cannot be read: {error.strerror}")
