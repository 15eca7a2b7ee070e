"""Files that a command writes where the user says: samples, pictures, sample specs.

A regular file is replaced atomically, when all of its content is on disk; for a link, the file that
it leads to. A device, a FIFO and a descriptor (/dev/stdout, `>(command)`) are written to, and stay
what they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bigmodel_cli.errors import ResourceError

DESCRIPTOR = re.compile(r"/(?:dev/fd|proc/(?:self|thread-self|[0-9]+)/fd)/([0-9]+)")
MOST_LINKS = 40


def check_output(path: Path, option: str) -> None:
    """Raise `ResourceError` where `write_output` could not write; called before the work whose
    result is written.
    """
    target = _target(path)
    named = f"{option}: {path}"
    if isinstance(target, int):
        return
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise ResourceError(
            f"{named}: cannot be written: {error.strerror}; name another file"
        ) from None
    if mode is not None and stat.S_ISDIR(mode):
        raise ResourceError(f"{named}: a folder; name a file")
    able = mode is not None and os.access(target, os.W_OK)
    if mode is None or stat.S_ISREG(mode):
        folder = target.parent
        if not os.path.isdir(folder):
            what = "is not a folder" if os.path.exists(folder) else "does not exist; make it"
            raise ResourceError(f"{named}: its folder {what}, or name another file")
        able = able or os.access(folder, os.W_OK | os.X_OK)
    if not able:
        raise ResourceError(f"{named}: cannot be written: {os.strerror(13)}; name another file")


def write_output(path: Path, pieces: Iterable[bytes]) -> None:
    """Write the pieces, one after the other, as the whole content of a file.

    Raises `ResourceError`; an existing regular file is then unchanged.
    """
    try:
        target = _target(path)
        if isinstance(target, int):
            with os.fdopen(os.dup(target), "wb") as file:
                file.writelines(pieces)
        elif os.path.exists(target) and not os.path.isfile(target):
            with open(target, "wb") as file:
                file.writelines(pieces)
        else:
            _replace(target, pieces)
    except BrokenPipeError:
        return  # the reader of a FIFO has closed it
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written: {error.strerror or error}; name another file"
        ) from None


def _target(path: Path) -> Path | int:
    """The file that a path leads to over links, or the descriptor that it stands for."""
    place = os.path.abspath(path)
    for _ in range(MOST_LINKS):
        found = DESCRIPTOR.fullmatch(place)
        if found:
            return int(found[1])
        if not os.path.islink(place):
            return Path(place)
        folder = os.path.realpath(os.path.dirname(place))
        place = os.path.normpath(os.path.join(folder, os.readlink(place)))
    raise ResourceError(f"{path}: a link that leads to itself; name another file")


def _replace(target: Path, pieces: Iterable[bytes]) -> None:
    """Replace `target` by a new file, or write into it where its folder does not accept a new
    file.
    """
    if os.path.exists(target) and not os.access(target.parent, os.W_OK | os.X_OK):
        with open(target, "wb") as file:
            file.writelines(pieces)
        return
    # never through a link at the draft's path
    descriptor, draft = tempfile.mkstemp(prefix=".bigmodel-", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, _mode(target))
        os.replace(draft, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, or those of a new one."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
