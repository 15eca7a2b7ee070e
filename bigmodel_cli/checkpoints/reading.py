"""Finding and reading checkpoints: every byte is verified before it is used, and nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bigmodel_cli.checkpoints import safe
from bigmodel_cli.checkpoints.contents import FACTS, FORMAT, MANIFEST, MODEL, SPEC, STATE, STEP, TRAIN, Contents
from bigmodel_cli.errors import CheckpointError, did_you_mean

MOST_MANIFEST = 100_000_000
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def steps(checkpoints: Path) -> list[Path]:
    """The committed checkpoints of a run, oldest first, by their step (not by the clock)."""
    if not checkpoints.is_dir():
        return []
    found = [p for p in checkpoints.iterdir() if STEP.match(p.name) and (p / MANIFEST).exists()]
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
