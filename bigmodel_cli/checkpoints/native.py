"""Saving and reading checkpoints.

Commit protocol: everything is written into a temporary folder and fsynced, the folder is renamed, its parent fsynced; `last` and
`best` (relative links) move only after that. Failpoints, in the order in which a save reaches them: checkpoint.write,
checkpoint.wrote, checkpoint.synced (each once a file), checkpoint.rename, checkpoint.renamed, checkpoint.marked,
checkpoint.prune (before each file that is removed).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.console import quantity
from bigmodel_cli.errors import CheckpointError, ResourceError, did_you_mean
from bigmodel_cli.failpoints import failpoint
from bigmodel_cli.lazy import Tensor

FORMAT = 1
MOST_MANIFEST = 100_000_000
MODEL, TRAIN, STATE, FACTS, SPEC = (
    "model.safetensors",
    "train_state.safetensors",
    "state.json",
    "facts.json",
    "spec.yaml",
)
MANIFEST = "manifest.json"
_STEP = re.compile(r"step-[0-9]{8,}\Z")
_DRAFT = re.compile(r"\.draft-step-[0-9]+-([0-9]+)\Z")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


@dataclass
class Contents:
    """What a checkpoint holds. `train` and `state` are what a resume needs beside the weights."""

    step: int
    model: dict[str, Tensor]
    train: dict[str, Tensor]
    state: dict[str, Any]
    spec: dict[str, Any]
    facts: dict[str, Any]
    assets: dict[str, bytes] = field(default_factory=dict)


def save(checkpoints: Path, contents: Contents, name: str | None = None) -> Path:
    """Commit a checkpoint, called after its step unless it has a name, and return its folder.

    Raises `ResourceError`; then nothing of it is left.
    """
    target = checkpoints / (name or f"step-{contents.step:08d}")
    draft = checkpoints / f".draft-step-{contents.step}-{os.getpid()}"
    files = {
        MODEL: safe.dump(contents.model),
        TRAIN: safe.dump(contents.train),
        STATE: json.dumps(contents.state, indent=1, allow_nan=False).encode(),
        FACTS: json.dumps(contents.facts, indent=1, allow_nan=False).encode(),
        SPEC: yaml.safe_dump(contents.spec, sort_keys=False).encode(),
        **contents.assets,
    }
    manifest = {
        "format": FORMAT,
        "step": contents.step,
        "files": {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()},
        "tensors": {MODEL: safe.describe(contents.model), TRAIN: safe.describe(contents.train)},
    }
    files[MANIFEST] = json.dumps(manifest, indent=1).encode()
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for name, content in files.items():
            _write(draft / name, content)
        _sync(draft)
        failpoint("checkpoint.rename")
        if target.exists():  # the same step again, after a resume: its content is the same
            shutil.rmtree(target)
        os.rename(draft, target)
        failpoint("checkpoint.renamed")
        _sync(checkpoints)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise _not_saved(checkpoints, sum(map(len, files.values())), error) from None
    return target


def _write(path: Path, content: bytes) -> None:
    failpoint("checkpoint.write")
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        failpoint("checkpoint.wrote")
        os.fsync(file.fileno())
    failpoint("checkpoint.synced")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_saved(checkpoints: Path, needed: int, error: OSError) -> ResourceError:
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(checkpoints).free
        return ResourceError(
            f"{checkpoints}: a checkpoint was not saved: {reason}; it needs {needed:,} bytes ({quantity(needed, 'B')}), and "
            f"{free:,} are free. Make room, then go on with --resume"
        )
    return ResourceError(f"{checkpoints}: a checkpoint was not saved: {reason}; the ones before it are untouched")


def mark(checkpoints: Path, name: str, folder: Path) -> None:
    """Let the relative link `name` ('last', 'best') point to a committed checkpoint. Raises `ResourceError`."""
    draft = checkpoints / f".{name}-{os.getpid()}"
    try:
        draft.unlink(missing_ok=True)
        draft.symlink_to(folder.name)
        os.replace(draft, checkpoints / name)
        failpoint("checkpoint.marked")
        _sync(checkpoints)
    except OSError as error:
        raise ResourceError(f"{checkpoints / name}: cannot be written: {os.strerror(error.errno or 0)}") from None


def prune(checkpoints: Path, keep: set[Path]) -> None:
    """Remove the checkpoints that are not in `keep`, and what dead processes left half written; never the newest."""
    present = steps(checkpoints)
    kept = {path.name for path in (*keep, *present[-1:])}
    kept |= {os.readlink(link) for link in (checkpoints / "last", checkpoints / "best") if link.is_symlink()}
    for path in [p for p in present if p.name not in kept]:
        # The manifest goes first: what is half removed is no checkpoint any more.
        for file in (path / MANIFEST, *sorted(path.iterdir())):
            failpoint("checkpoint.prune")
            file.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    for path in checkpoints.iterdir():
        match = _DRAFT.match(path.name)
        abandoned = (
            not _alive(int(match[1])) if match else bool(_STEP.match(path.name)) and not (path / MANIFEST).exists()
        )
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def steps(checkpoints: Path) -> list[Path]:
    """The committed checkpoints of a run, oldest first, by their step (not by the clock)."""
    if not checkpoints.is_dir():
        return []
    found = [p for p in checkpoints.iterdir() if _STEP.match(p.name) and (p / MANIFEST).exists()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def find(path: Path) -> Path:
    """The checkpoint that `path` names: itself, or the last one of a run. Raises `CheckpointError`."""
    if path.is_file() and path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path}: a pickle can run code when it is read, so it is refused; convert it to safetensors where it came from"
        )
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise CheckpointError(f"{path}: no such checkpoint{near or '; a run prints its checkpoint when it ends'}")
    if (path / MANIFEST).exists():
        return path.parent / os.readlink(path) if path.is_symlink() else path
    for folder in (path / "checkpoints", path):
        if (folder / "last" / MANIFEST).exists():
            return folder / os.readlink(folder / "last")
        if found := steps(folder):
            return found[-1]
    held = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    if any(name.endswith(_PICKLES) for name in held):
        raise CheckpointError(
            f"{path}: holds pickles ({', '.join(held[:3])}), which can run code when read, and are refused"
        )
    raise CheckpointError(f"{path}: not a checkpoint (no {MANIFEST}), and no run with one")


def newest(checkpoints: Path, say: Callable[[str], None]) -> Contents | None:
    """The newest checkpoint that verifies; None where none was committed.

    One that does not is said and passed over. Raises `CheckpointError` where all are broken.
    """
    found = steps(checkpoints)
    for path in reversed(found):
        try:
            return read(path, train_state=True)
        except CheckpointError as error:
            say(f"warning: {error}")
            if path != found[0]:
                say(f"falling back to the checkpoint before {path.name}")
    if found:
        raise CheckpointError(f"{checkpoints}: none of its {len(found)} checkpoint(s) can be used; start a new run")
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The checked manifest of a checkpoint. Raises `CheckpointError`."""
    file = path / MANIFEST
    try:
        if file.is_symlink() or file.stat().st_size > MOST_MANIFEST:
            raise CheckpointError(f"{file}: a link or too large; use another checkpoint")
        manifest = json.loads(file.read_bytes())
        files = manifest["files"]
        well = all(isinstance(e["size"], int) and isinstance(e["sha256"], str) for e in files.values())
        well = well and isinstance(manifest["tensors"][MODEL], dict) and isinstance(manifest["step"], int)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}; use another checkpoint") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({type(error).__name__}: {error}); use another checkpoint") from None
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: format {manifest.get('format')!r}; this bigmodel reads format {FORMAT}: use the version that wrote it"
        )
    for name in files:
        if not well or name != os.path.basename(name) or name in (".", "..", MANIFEST) or (path / name).is_symlink():
            raise CheckpointError(f"{file}: names {name!r}, which is not a plain file of the checkpoint; it is refused")
    return dict(manifest)


def read(path: Path, *, train_state: bool) -> Contents:
    """A checkpoint's contents, every byte verified; without what only a resume needs where `train_state` is False."""
    manifest = read_manifest(path)
    wanted = [name for name in manifest["files"] if train_state or name != TRAIN]
    content = {name: _verified(path / name, manifest["files"][name]) for name in wanted}
    missing = {MODEL, STATE, FACTS, SPEC, *([TRAIN] if train_state else [])} - content.keys()
    if missing:
        raise CheckpointError(f"{path}: incomplete: {', '.join(sorted(missing))} is missing; use another checkpoint")
    tensors = {}
    for name in (MODEL, TRAIN):
        if name in content:
            tensors[name] = safe.load(content[name], path / name)
            safe.same_as_described(tensors[name], manifest["tensors"].get(name, {}), path / name)
    return Contents(
        step=manifest["step"],
        model=tensors[MODEL],
        train=tensors.get(TRAIN, {}),
        state=_parsed(content[STATE], path / STATE),
        spec=_parsed(content[SPEC], path / SPEC),
        facts=_parsed(content[FACTS], path / FACTS),
        assets={n: c for n, c in content.items() if n not in (MODEL, TRAIN, STATE, FACTS, SPEC)},
    )


def read_spec(path: Path) -> dict[str, Any]:
    """The resolved spec of a checkpoint, verified. Raises `CheckpointError`."""
    manifest = read_manifest(path)
    if SPEC not in manifest["files"]:
        raise CheckpointError(f"{path}: incomplete: {SPEC} is missing; use another checkpoint")
    return _parsed(_verified(path / SPEC, manifest["files"][SPEC]), path / SPEC)


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file of a checkpoint. Raises `CheckpointError`."""
    try:
        value = yaml.safe_load(content) if path.suffix == ".yaml" else json.loads(content)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: damaged ({reason}); use another checkpoint") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: damaged (not a mapping); use another checkpoint")
    return value


def _verified(path: Path, entry: dict[str, Any]) -> bytes:
    content = safe.read_bounded(path, entry["size"])
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise CheckpointError(
            f"{path}: its SHA-256 is not the one in {MANIFEST}: damaged or changed; use another checkpoint"
        )
    return content
