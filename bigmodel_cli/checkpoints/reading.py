"""Finding and reading checkpoints: every byte is verified before use, and no code is run."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.contents import (
    FACTS,
    KINDS,
    MANIFEST,
    MODEL,
    SPEC,
    STATE,
    STEP,
    TRAIN,
)
from bigmodel_cli.checkpoints.files import ANOTHER, clipped, parse_json, read_file
from bigmodel_cli.checkpoints.manifest import Manifest, is_asset, read_manifest, shard_of
from bigmodel_cli.checkpoints.stored import StoredTensors, Tensors, open_tensors
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import counted
from bigmodel_cli.errors import CheckpointError, SpecError, did_you_mean
from bigmodel_cli.yaml_source import MAX_RESOLVED, MAX_RESOLVED_NODES, parse_yaml

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_MARKS = ("last", "best")
_SECTIONS = ("model", "data", "task", "train")
MOST_LINKS = 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content, verified; its tensors are verified when they are read.

    `headless` ones have no weights of output layers. `notes` are said where it is used.
    """

    step: int
    model: Tensors
    train: StoredTensors
    state: dict[str, Any]
    spec: dict[str, Any]
    info: dict[str, Any]
    assets: dict[str, bytes]
    headless: bool = False
    notes: tuple[str, ...] = ()

    def verify(self) -> None:
        """Read every byte of the tensors too. Raises `CheckpointError`."""
        self.model.copy_to({})
        self.train.copy_to({})


def steps(checkpoints: Path) -> list[Path]:
    """The committed checkpoints of a run, oldest first, by their step (not by the clock)."""
    if not os.path.isdir(checkpoints):
        return []
    found = [
        p for p in checkpoints.iterdir() if STEP.match(p.name) and os.path.exists(p / MANIFEST)
    ]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def find(path: Path) -> Path:
    """The checkpoint that `path` names: itself, or the last one of a run.

    Raises `CheckpointError`.
    """
    try:
        return _found(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from None


def _found(path: Path) -> Path:
    if os.path.isfile(path) and path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path}: a pickle can run code when it is read, so it is refused; convert it to"
            " safetensors where it came from"
        )
    _check_mark(path)
    if not os.path.exists(path):
        if path.is_symlink():
            raise CheckpointError(f"{path}: a link that leads nowhere; name the checkpoint itself")
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
            if os.path.isdir(path.parent)
            else ""
        )
        raise CheckpointError(
            f"{path}: no such checkpoint{near or '; a run prints its checkpoint when it ends'}"
        )
    if os.path.exists(path / MANIFEST):
        return _followed(path)
    for folder in (path / "checkpoints", path):
        _check_mark(folder / "last")
        if os.path.exists(folder / "last" / MANIFEST):
            return _followed(folder / "last")
        if found := steps(folder):
            return found[-1]
    held = sorted(p.name for p in path.iterdir()) if os.path.isdir(path) else []
    if any(name.endswith(_PICKLES) for name in held):
        raise CheckpointError(
            f"{path}: holds pickles ({', '.join(held[:3])}), which can run code when read, and are"
            " refused"
        )
    if path.suffix in (".yaml", ".yml") and os.path.isfile(path):
        raise CheckpointError(
            f"{path}: this is a spec; name the checkpoint or the run that `bigmodel pretrain"
            f" {shlex.quote(str(path))}` made"
        )
    raise CheckpointError(f"{path}: not a checkpoint (no {MANIFEST}), and no run with one")


def _check_mark(path: Path) -> None:
    """Raise `CheckpointError` where `last` or `best` links to anything but a folder beside it."""
    if path.name in _MARKS and path.is_symlink():
        target = os.readlink(path)
        if target != os.path.basename(target) or target in ("", ".", "..", *_MARKS):
            raise CheckpointError(
                f"{path}: a link to {clipped(target)!r}, which is not a checkpoint beside it; it is"
                " refused; name the checkpoint itself"
            )


def _followed(path: Path) -> Path:
    """The target of a link that the user named or that marks a checkpoint; else the path itself."""
    for _ in range(MOST_LINKS):
        _check_mark(path)
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    return path


def newest(
    checkpoints: Path, say: Callable[[str], None], among: Sequence[Path] | None = None
) -> Checkpoint | None:
    """The newest checkpoint that verifies, of all or `among` these; None where there are none.

    One that does not verify is reported and skipped. Raises `CheckpointError` where all are broken.
    """
    found = steps(checkpoints) if among is None else among
    for path in reversed(found):
        try:
            checkpoint = read(path, train_state=True)
            checkpoint.verify()
            return checkpoint
        except CheckpointError as error:
            say(f"warning: {error}")
            if path != found[0]:
                say(f"falling back to the checkpoint before {path.name}")
    if found:
        raise CheckpointError(
            f"{checkpoints}: none of its {counted(len(found), 'checkpoint')} can be used;"
            " start a new run"
        )
    return None


def read(path: Path, *, train_state: bool) -> Checkpoint:
    """A checkpoint, without what only a resume needs where `train_state` is False.

    Raises `CheckpointError`.
    """
    manifest = read_manifest(path)
    tensors = [*manifest.shards[MODEL], *(manifest.shards[TRAIN] if train_state else [])]
    missing = {*tensors, STATE, FACTS, SPEC} - manifest.files.keys()
    if missing:
        raise CheckpointError(
            f"{path}: incomplete: {', '.join(sorted(missing))} is missing; {ANOTHER}"
        )
    small = {
        n: _verified(path / n, manifest) for n in manifest.files if shard_of(n)[0] not in KINDS
    }
    state = _json(small[STATE], path / STATE)
    if type(state.get("step")) is not int or state["step"] != manifest.step:
        step = clipped(repr(state.get("step")), 40)
        raise CheckpointError(
            f"{path / STATE}: step: {step}, and {MANIFEST} says {manifest.step}; {ANOTHER}"
        )
    return Checkpoint(
        step=manifest.step,
        state=state,
        spec=_spec(small[SPEC], path / SPEC),
        info=_facts(small[FACTS], path / FACTS),
        assets={n: c for n, c in small.items() if is_asset(n)},
        model=open_tensors(path, MODEL, manifest),
        train=open_tensors(path, TRAIN, manifest) if train_state else StoredTensors([], {}),
    )


def read_spec(path: Path) -> dict[str, Any]:
    """The resolved spec of a checkpoint, verified: a mapping with all of a spec's sections.

    Raises `CheckpointError`.
    """
    return _spec(_one(path, SPEC), path / SPEC)


def read_assets(path: Path) -> dict[str, bytes]:
    """The verified files of the data: facts.json, and assets such as tokenizer.json."""
    manifest = read_manifest(path)
    assets = {n: _verified(path / n, manifest) for n in manifest.files if is_asset(n)}
    return {**assets, FACTS: _one(path, FACTS)}


def _one(path: Path, name: str) -> bytes:
    manifest = read_manifest(path)
    if name not in manifest.files:
        raise CheckpointError(f"{path}: incomplete: {name} is missing; {ANOTHER}")
    return _verified(path / name, manifest)


def _spec(content: bytes, path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(content, str(path), MAX_RESOLVED, MAX_RESOLVED_NODES).plain()
    except SpecError as error:
        raise CheckpointError(
            f"{clipped(str(error).splitlines()[0], 500)}: damaged; {ANOTHER}"
        ) from None
    if not isinstance(values, dict) or not all(
        isinstance(values.get(name), dict) for name in _SECTIONS
    ):
        raise CheckpointError(
            f"{path}: damaged (not a mapping with {', '.join(_SECTIONS)}); {ANOTHER}"
        )
    return values


def _facts(content: bytes, path: Path) -> dict[str, Any]:
    values = _json(content, path)
    try:
        DatasetInfo.from_json(values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {clipped(str(error), 500)}; {ANOTHER}") from None
    return values


def _json(content: bytes, path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of a checkpoint. Raises `CheckpointError`."""
    try:
        value = parse_json(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({clipped(str(error))}); {ANOTHER}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: damaged (not a mapping); {ANOTHER}")
    return value


def _verified(path: Path, manifest: Manifest) -> bytes:
    """The content of a file that has the size and the SHA-256 of the manifest.

    Raises `CheckpointError`.
    """
    size, digest = manifest.files[path.name]
    content = read_file(path, size, size)
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(
            f"{path}: its SHA-256 is not the one in {MANIFEST}: damaged or changed; {ANOTHER}"
        )
    return content
