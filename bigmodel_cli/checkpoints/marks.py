"""The links `last` and `best`, and removing the checkpoints that are no longer kept."""

from __future__ import annotations

import os
from pathlib import Path

from bigmodel_cli.checkpoints.contents import MANIFEST
from bigmodel_cli.checkpoints.reading import steps
from bigmodel_cli.checkpoints.replacing import tidy
from bigmodel_cli.disk import remove, sync
from bigmodel_cli.errors import ResourceError
from bigmodel_cli.failpoints import failpoint


def mark(checkpoints: Path, name: str, folder: Path) -> None:
    """Point the relative link `name` ('last', 'best') to a committed checkpoint.

    Raises `ResourceError`.
    """
    draft = checkpoints / f".{name}-{os.getpid()}"
    try:
        draft.unlink(missing_ok=True)
        draft.symlink_to(folder.name)
        os.replace(draft, checkpoints / name)
        failpoint("checkpoint.marked")
        sync(checkpoints)
    except OSError as error:
        raise ResourceError(
            f"{checkpoints / name}: cannot be written: {os.strerror(error.errno or 0)}"
        ) from None


def prune(checkpoints: Path, keep: set[Path]) -> None:
    """Remove the checkpoints that are not in `keep` (never the newest), and dead processes' drafts.

    The caller holds the run's lock.
    """
    present = steps(checkpoints)
    kept = {path.name for path in (*keep, *present[-1:])}
    kept |= {
        os.readlink(link)
        for link in (checkpoints / "last", checkpoints / "best")
        if link.is_symlink()
    }
    for path in [p for p in present if p.name not in kept]:
        _remove(path)
    tidy(checkpoints)


def drop_after(checkpoints: Path, kept: Path) -> None:
    """Remove the checkpoints after `kept`, to which `last` points: the run goes on from there.

    The caller holds the run's lock.
    """
    present = steps(checkpoints)
    for path in reversed(present[present.index(kept) + 1 :]):
        _remove(path)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, its manifest first, so that a half removed one is not a checkpoint."""
    for file in (checkpoint / MANIFEST, *sorted(checkpoint.iterdir())):
        failpoint("checkpoint.prune")
        remove(file, ignore_errors=True)
    remove(checkpoint, ignore_errors=True)
