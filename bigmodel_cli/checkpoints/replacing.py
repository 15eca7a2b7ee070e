"""Replacing a checkpoint by a finished draft: at any moment one of the two is there, whole."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path

from bigmodel_cli.checkpoints.contents import MANIFEST, STEP
from bigmodel_cli.disk import remove
from bigmodel_cli.failpoints import failpoint

ASIDE = ".aside-"
_DRAFT = re.compile(r"\.(draft-.+|(last|best)-[0-9]+)\Z")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def replace(draft: Path, target: Path, sync: Callable[[Path], None]) -> None:
    """Rename a draft to `target`, and remove what had that name. Raises `OSError`.

    Where the system cannot exchange two names atomically, the old one is renamed aside meanwhile,
    and `tidy` restores it if the process died in between.
    """
    if not os.path.lexists(target):
        os.rename(draft, target)
        failpoint("checkpoint.renamed")
        return
    if _exchange(draft, target):
        failpoint("checkpoint.renamed")
        sync(target.parent)
        remove(draft, ignore_errors=True)
        return
    aside = target.with_name(f"{ASIDE}{target.name}")
    remove(aside, ignore_errors=True)
    os.rename(target, aside)
    failpoint("checkpoint.aside")
    try:
        os.rename(draft, target)
    except OSError:
        os.rename(aside, target)
        raise
    failpoint("checkpoint.renamed")
    sync(target.parent)
    remove(aside, ignore_errors=True)


def tidy(checkpoints: Path) -> None:
    """Clean up the folder of a run's checkpoints after a process died.

    The caller holds the run's lock.

    So any draft is a dead process's, whatever process id is in its name.
    """
    if not os.path.isdir(checkpoints):
        return
    for path in sorted(checkpoints.iterdir()):
        if path.name.startswith(ASIDE):
            target = path.with_name(path.name.removeprefix(ASIDE))
            if os.path.exists(path / MANIFEST) and not os.path.exists(target):
                os.rename(path, target)
        half = (
            bool(STEP.match(path.name))
            and os.path.isdir(path)
            and not os.path.exists(path / MANIFEST)
        )
        if path.is_symlink() and _DRAFT.match(path.name):
            path.unlink(missing_ok=True)
        elif half or _DRAFT.match(path.name) or path.name.startswith(ASIDE):
            remove(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically; False where the system or the file system cannot."""
    with contextlib.suppress(OSError, AttributeError):
        renameat2 = ctypes.CDLL(None).renameat2  # Linux
        names = os.fsencode(one), os.fsencode(other)
        return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
    return False
