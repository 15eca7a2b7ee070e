"""Where prepared data is cached."""

from __future__ import annotations

import os
from pathlib import Path

from bigmodel_cli.errors import ResourceError


def cache_directory(kind: str) -> Path:
    """The folder for one kind of prepared data below $XDG_CACHE_HOME, created where missing.

    Where that is unset, or not an absolute path (which the XDG specification says to ignore), it is
    ~/.cache. Raises `ResourceError` where it cannot be created.
    """
    path = _home() / "bigmodel" / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def _home() -> Path:
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named)
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set, and the user has no entry that names one
        home = Path()
    if not home.is_absolute() or os.environ.get("HOME") == "":
        raise ResourceError(
            "no place for the cache: no home directory is known; set XDG_CACHE_HOME to an absolute"
            " path"
        )
    return home / ".cache"


def unwritable(path: Path, error: OSError) -> ResourceError:
    """The error for a cache that cannot be written, with its remedy."""
    reason = os.strerror(error.errno or 0)
    return ResourceError(
        f"{path}: the cache cannot be written: {reason}; make room there, or set XDG_CACHE_HOME"
    )
