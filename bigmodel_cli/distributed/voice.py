"""One voice: what the other processes print goes into files of theirs, not among the first's.

Until the run's directory is known their output waits in a file without a name.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from bigmodel_cli.distributed.names import log_name

_real: list[int] = []
"""The descriptor of stderr as it was, while output goes elsewhere."""
_log: list[Path] = []


def mute() -> None:
    """From here on what this process prints waits in a file."""
    if _real:
        return
    _real.append(os.dup(2))
    with tempfile.TemporaryFile() as file:
        _to(file.fileno())


def write_to(folder: Path, rank: int) -> None:
    """From here on it goes, with what waited, into the process's file in this folder.

    Where that cannot be written it goes on waiting.
    """
    if not _real:
        return
    path = folder / log_name(rank)
    with contextlib.suppress(OSError):
        _flush()
        waited = os.pread(2, 1 << 24, 0) if not _log else b""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        os.write(file, waited)
        _to(file)
        os.close(file)
        _log[:] = [path]


def speak() -> None:
    """Print on the real stderr again: the first process no longer can."""
    if _real:
        _flush()
        os.dup2(_real[0], 2)


def real() -> int:
    """The descriptor of stderr as it was."""
    return _real[0] if _real else 2


def is_muted() -> bool:
    """Whether what this process prints goes elsewhere."""
    return bool(_real)


def waiting() -> bytes:
    """What this process printed while no file had a name."""
    _flush()
    return os.pread(2, 1 << 20, 0) if _real and not _log else b""


def _to(file: int) -> None:
    _flush()
    os.dup2(file, 1)
    os.dup2(file, 2)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
