"""manifest.json: files with sizes and hashes, and the shape and dtype of every tensor."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.contents import (
    FACTS,
    FORMATS,
    INDEX,
    KINDS,
    MANIFEST,
    MODEL,
    SPEC,
    STATE,
    TRAIN,
)
from bigmodel_cli.checkpoints.files import (
    ANOTHER,
    MOST_JSON,
    clipped,
    is_whole,
    parse_json,
    read_file,
)
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.yaml_source import MAX_RESOLVED

MOST_STEP = 10**10
MOST_FILES = 1000
MOST_NAME = 100
"""Most bytes of a file's name."""
MOST_SIZE = 2**53
SIZES = {MODEL: MOST_SIZE, TRAIN: MOST_SIZE, STATE: MOST_JSON, FACTS: MOST_JSON, INDEX: MOST_JSON}
SIZES[SPEC] = MAX_RESOLVED
MOST_ASSET = 100_000_000
"""Most bytes of any other file, such as tokenizer.json (35 million for 256,000 tokens)."""
MOST_ASSETS = 2 * MOST_ASSET
_SHA256 = re.compile("[0-9a-f]{64}")
_SHARD = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})(\.safetensors)")


def shard_names(kind: str, count: int) -> list[str]:
    """The names of `count` files of a kind of tensors."""
    stem = kind.removesuffix(".safetensors")
    return (
        [kind]
        if count == 1
        else [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    )


def shard_of(name: str) -> tuple[str, int]:
    """(kind, number of files of that kind) of a file of tensors; of another file (its name, 1)."""
    found = _SHARD.fullmatch(name)
    return (
        (found[1] + found[3], int(found[2]))
        if found and found[1] + found[3] in KINDS
        else (name, 1)
    )


def is_asset(name: str) -> bool:
    """Whether a file of a checkpoint is an asset of the data."""
    return shard_of(name)[0] not in SIZES


@dataclass(frozen=True)
class Manifest:
    """Files -> (size, SHA-256), and for each file of tensors name -> {shape, dtype} or {tied_to}.

    `shards` has the file names of each kind of tensors, whether they exist or not.
    """

    step: int
    files: dict[str, tuple[int, str]]
    tensors: dict[str, dict[str, Any]]
    shards: dict[str, list[str]]


def read_manifest(path: Path) -> Manifest:
    """The checked manifest of a checkpoint. Raises `CheckpointError`."""
    file = path / MANIFEST
    if path.is_symlink():
        raise CheckpointError(
            f"{path}: a link in the place of a checkpoint; it is refused; name what it stands for"
        )
    content = read_file(file, MOST_JSON)
    try:
        values = parse_json(content)
        if not isinstance(values, dict):
            raise ValueError("not a mapping")
        _check_format(file, values.get("format"))
        if not is_whole(values.get("step"), MOST_STEP):
            raise ValueError(
                f"step: {clipped(repr(values.get('step')), 40)} is not the number of a step"
            )
        files = _mapping(values, "files")
        for name in files:
            if (
                len(files) > MOST_FILES
                or name != os.path.basename(name)
                or name in ("", ".", "..", MANIFEST)
            ):
                raise CheckpointError(
                    f"{file}: names {clipped(name)!r}, which is not a plain file of the checkpoint;"
                    " it is refused"
                )
        entries = {name: _entry(name, entry) for name, entry in files.items()}
        if sum(size for name, (size, _) in entries.items() if is_asset(name)) > MOST_ASSETS:
            raise ValueError(f"files: more than {MOST_ASSETS:,} bytes beside tensors")
        tensors = _mapping(values, "tensors")
        described = {name: _mapping(tensors, name) for name in tensors}
        if all(shard_of(name)[0] != MODEL for name in described):
            raise ValueError(f"tensors: those of {MODEL} are missing")
        shards = {kind: _shards(kind, files) for kind in KINDS}
    except ValueError as error:
        raise CheckpointError(f"{file}: damaged ({clipped(str(error))}); {ANOTHER}") from None
    return Manifest(values["step"], entries, described, shards)


def _check_format(file: Path, found: Any) -> None:
    if not is_whole(found, MOST_STEP):
        raise ValueError(f"format: {clipped(repr(found), 40)} is not the number of a format")
    if found in FORMATS:
        return
    newer = (
        "written by a newer bigmodel: update this one"
        if found > max(FORMATS)
        else "use the version that wrote it"
    )
    raise CheckpointError(
        f"{file}: format {found}; this bigmodel reads formats {FORMATS[0]} to {FORMATS[-1]}:"
        f" {newer}"
    )


def _shards(kind: str, files: dict[str, Any]) -> list[str]:
    """The names of the files of a kind. Raises `ValueError` where they are of two sets."""
    found = [name for name in files if shard_of(name)[0] == kind]
    names = shard_names(kind, shard_of(found[0])[1]) if found else [kind]
    if more := set(found) - set(names):
        raise ValueError(
            f"files: {min(more)} belongs to other files of tensors than"
            f" {min(set(found) - more, default=kind)}"
        )
    return names


def _mapping(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"{clipped(name, 40)}: missing, or not a mapping")
    return found


def _entry(name: str, entry: Any) -> tuple[int, str]:
    """(size, SHA-256) of a file. Raises `ValueError`."""
    if len(os.fsencode(name)) > MOST_NAME or not isinstance(entry, dict):
        raise ValueError(f"files: the entry of {clipped(name, 40)!r} is faulty")
    size, digest = entry.get("size"), entry.get("sha256")
    most = SIZES.get(shard_of(name)[0], MOST_ASSET)
    if type(size) is not int or not 0 <= size <= most:
        raise ValueError(f"files: the size of {name!r} is not one of 0 to {most:,} bytes")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"files: the SHA-256 of {name!r} is not one")
    return size, digest
