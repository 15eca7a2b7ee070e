"""Where prepared data is kept."""

from __future__ import annotations

import os
from pathlib import Path

from bigmodel_cli.errors import ResourceError


def cache_directory(kind: str) -> Path:
    """The folder for one kind of prepared data below $XDG_CACHE_HOME (else ~/.cache), made where it is missing.

    Raises `ResourceError` where it cannot be made.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    path = home / "bigmodel" / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def unwritable(path: Path, error: OSError) -> ResourceError:
    """The error that says that nothing can be written to the cache, and what to do."""
    reason = os.strerror(error.errno or 0)
    return ResourceError(f"{path}: the cache cannot be written: {reason}; make room there, or set XDG_CACHE_HOME")
