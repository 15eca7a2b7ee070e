"""A folder in Hugging Face's layout: config.json, weights with an index, tokenizer.

Everything is read within the bounds of our own checkpoints: regular files only, sizes known before
anything is read, no code run. Links are followed in one case: in a folder of the hub's cache, from
a snapshot to the blobs beside it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.contents import MANIFEST
from bigmodel_cli.checkpoints.files import MOST_JSON, clipped, parse_json, read_file
from bigmodel_cli.convert.config import Config
from bigmodel_cli.errors import CheckpointError

CONFIG = "config.json"
ANOTHER = "use another checkpoint"
DIGITS = 40
"""Most digits of an integer: tokenizer_config.json writes 10^30 for "no limit"."""
_BLOB = re.compile(r"((?:\.\./)+)blobs/([0-9a-zA-Z]{1,128})")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder in this layout, rather than a checkpoint of ours."""
    return os.path.isfile(path / CONFIG) and not os.path.lexists(path / MANIFEST)


def located(folder: Path, name: str) -> Path:
    """The file of this name in a folder: in a snapshot of the hub's cache, the blob it stands for.

    Any other link stays what it is, and is refused when it is opened.
    """
    path = folder / name
    for depth in (0, 1):  # of the snapshot itself, and of a folder in it
        root = folder.parents[depth] if len(folder.parents) > depth else folder
        if root.name == "snapshots" and path.is_symlink():
            blob = _BLOB.fullmatch(os.readlink(path))
            if blob and blob[1] == "../" * (depth + 2):
                return root.parent / "blobs" / blob[2]
    return path


def has(folder: Path, name: str) -> bool:
    """Whether there is anything of this name."""
    return os.path.lexists(folder / name)


def read_config(folder: Path) -> Config:
    """The content of config.json. Raises `CheckpointError`.

    Refused: code that the folder would have run (`auto_map`), and compressed weights.
    """
    config = Config(read_json(folder, CONFIG), str(folder / CONFIG))
    if "auto_map" in config.values:
        raise CheckpointError(
            f"{config.file}: auto_map: this model is code that comes with it, which is not run;"
            f" {ANOTHER}"
        )
    if "quantization_config" in config.values:
        raise CheckpointError(
            f"{config.file}: quantization_config: compressed weights are not read; take those in"
            " bf16, fp16 or fp32"
        )
    return config


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The mapping in a JSON file of the folder. Raises `CheckpointError`."""
    return json_of(read(folder, name, MOST_JSON), folder / name)


def json_of(content: bytes, path: Path | str) -> dict[str, Any]:
    """The mapping in the content of a JSON file. Raises `CheckpointError`."""
    try:
        values = parse_json(content, DIGITS, infinite=True)  # transformers 4 writes such bounds
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({clipped(str(error))}); {ANOTHER}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: damaged (not a mapping); {ANOTHER}")
    return values


def read(folder: Path, name: str, most: int) -> bytes:
    """The content of a file of at most `most` bytes. Raises `CheckpointError`."""
    return read_file(located(folder, name), most)
