"""Writing a folder whole or not at all: a draft beside it, synced, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from bigmodel_cli.disk import draft_of, held, remove, remove_drafts, sync
from bigmodel_cli.errors import ResourceError, SpecError
from bigmodel_cli.failpoints import failpoint


def check_free(out: Path) -> None:
    """Raise `SpecError` where a path is taken; an empty folder is not.

    Raises `ResourceError` where nothing can be written beside it.
    """
    taken = os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir()))
    if taken:
        raise SpecError(f"{out}: is there already; name a new folder")
    if not os.path.isdir(parent := out.absolute().parent):
        raise ResourceError(f"{out}: its folder {parent} does not exist; make it")


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Make the folder `out` of what `write` writes into a draft.

    Raises `ResourceError` where the disk does not take it; then nothing of it is left.
    """
    draft = draft_of(out.absolute())
    remove_drafts(out.absolute())
    try:
        remove(draft, ignore_errors=True)
        draft.mkdir()
        with held(draft):
            write(draft)
            for path in sorted(draft.rglob("*")):
                sync(path)
            sync(draft)
            failpoint("export.rename")
            os.rename(draft, out.absolute())
        sync(draft.parent)
    except OSError as error:
        remove(draft, ignore_errors=True)
        raise ResourceError(
            f"{out}: cannot be written: {error.strerror or error}; nothing of it is left; name a"
            " folder on another disk, or free some space"
        ) from None
    except BaseException:  # a fault of the model, or the user will not wait
        remove(draft, ignore_errors=True)
        raise


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file of the draft."""
    with open(path, "wb") as file:
        for piece in pieces:
            failpoint("export.writing")
            file.write(piece)
