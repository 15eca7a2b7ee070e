"""Saving checkpoints, and removing those that are no longer kept.

Commit protocol: everything is written into a temporary folder and fsynced, the folder is renamed,
its parent fsynced; `last` and `best` (relative links) move only after that. A step that is saved
again keeps its old copy until the new one has its name (replacing.py). Failpoints, in the order in
which a save reaches them: checkpoint.write, checkpoint.writing (before each piece),
checkpoint.wrote, checkpoint.synced (each once a file), checkpoint.rename, (checkpoint.aside,)
checkpoint.renamed, checkpoint.marked, checkpoint.prune (before each file that is removed).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.contents import (
    FACTS,
    FORMATS,
    MANIFEST,
    MODEL,
    SPEC,
    STATE,
    TRAIN,
    Contents,
    step_name,
)
from bigmodel_cli.checkpoints.files import read_file
from bigmodel_cli.checkpoints.reading import read, steps
from bigmodel_cli.checkpoints.replacing import replace, tidy
from bigmodel_cli.checkpoints.shards import shards
from bigmodel_cli.console import quantity
from bigmodel_cli.disk import draft_of, held, remove, remove_drafts, sync
from bigmodel_cli.errors import BigmodelError, ResourceError
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.yaml_scalars import dump_yaml


def save(checkpoints: Path, contents: Contents, name: str | None = None) -> Path:
    """Commit a checkpoint, named after its step by default, and return its folder.

    Drafts of one that is named otherwise, outside a run, are removed where they were left; a run's
    are by `tidy`.
    Raises `ResourceError`; then nothing of it is left.
    """
    target = checkpoints / (name or step_name(contents.step))
    draft = draft_of(checkpoints / (name or f"step-{contents.step}"))
    tensors = [*shards(MODEL, contents.model), *shards(TRAIN, contents.train)]
    small = {
        STATE: json.dumps(contents.state, indent=1, allow_nan=False).encode(),
        FACTS: json.dumps(contents.info, indent=1, allow_nan=False).encode(),
        SPEC: dump_yaml(contents.spec).encode(),
        **contents.assets,
    }
    files: dict[str, Iterable[bytes | memoryview]] = {s.name: s for s in tensors}
    files |= {name: [content] for name, content in small.items()}
    described = {shard.name: shard.described() for shard in tensors}
    if _same(target, files, small, contents.step, described):  # the same step again, after a resume
        return target
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        if name is not None:
            remove_drafts(target)
        remove(draft, ignore_errors=True)
        draft.mkdir()
        with held(draft):
            entries = {file: _write(draft / file, content) for file, content in files.items()}
            _write(draft / MANIFEST, [_manifest(contents.step, entries, described)])
            sync(draft)
            failpoint("checkpoint.rename")
            replace(draft, target, sync)
        sync(checkpoints)
    except OSError as error:
        remove(draft, ignore_errors=True)
        sizes = {
            **{shard.name: shard.size() for shard in tensors},
            **{name: len(c) for name, c in small.items()},
        }
        unhashed = {name: {"size": size, "sha256": "0" * 64} for name, size in sizes.items()}
        needed = sum(sizes.values()) + len(_manifest(contents.step, unhashed, described))
        raise _not_saved(checkpoints, needed, error) from None
    except BaseException:  # a tensor could not be copied from its device, or the user will not wait
        remove(draft, ignore_errors=True)
        raise
    return target


def _manifest(step: int, entries: dict[str, Any], described: dict[str, Any]) -> bytes:
    manifest = {"format": max(FORMATS), "step": step, "files": entries, "tensors": described}
    return json.dumps(manifest, indent=1).encode()


def _entry(
    content: Iterable[bytes | memoryview], write: Callable[[bytes | memoryview], object]
) -> dict[str, Any]:
    """Size and SHA-256 of a file's content, passing each piece to `write`."""
    size, digest = 0, hashlib.sha256()
    for piece in content:
        write(piece)
        digest.update(piece)
        size += len(piece)
    return {"size": size, "sha256": digest.hexdigest()}


def _same(
    target: Path,
    files: dict[str, Iterable[bytes | memoryview]],
    small: dict[str, bytes],
    step: int,
    described: Any,
) -> bool:
    """Whether this very checkpoint is there already, byte for byte."""
    try:
        if {p.name for p in target.iterdir()} != {*files, MANIFEST}:
            return False
        if any(
            read_file(target / name, len(content), len(content)) != content
            for name, content in small.items()
        ):
            return False
        manifest = _manifest(
            step,
            {name: _entry(content, lambda _: None) for name, content in files.items()},
            described,
        )
        if read_file(target / MANIFEST, len(manifest), len(manifest)) != manifest:
            return False
        read(target, train_state=True).verify()
    except (OSError, BigmodelError):
        return False
    return True


def _write(path: Path, content: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write a file, and return its manifest entry."""
    failpoint("checkpoint.write")

    def write(piece: bytes | memoryview) -> None:
        failpoint("checkpoint.writing")
        file.write(piece)

    with open(path, "wb") as file:
        entry = _entry(content, write)
        file.flush()
        failpoint("checkpoint.wrote")
        os.fsync(file.fileno())
    failpoint("checkpoint.synced")
    return entry


def _not_saved(checkpoints: Path, needed: int, error: OSError) -> ResourceError:
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(checkpoints).free
        return ResourceError(
            f"{checkpoints}: a checkpoint was not saved: {reason}; it needs {needed:,} bytes"
            f" ({quantity(needed, 'B')}), and {free:,} are free. Make room, then go on with"
            " --resume"
        )
    return ResourceError(
        f"{checkpoints}: a checkpoint was not saved: {reason}; the ones before it are untouched"
    )


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
