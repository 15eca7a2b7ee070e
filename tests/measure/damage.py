"""What is done to the files of a checkpoint: their bytes, their values, what stands in their place;
and signing them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from mutators import mutate_bytes, mutate_lines, mutate_tree

TENSORS = ("model.safetensors", "train_state.safetensors")
DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
 "I32": "int32", "I16": "int16",
          "I8": "int8", "U8": "uint8", "BOOL": "bool"}  # fmt: skip


def sign(checkpoint: Path) -> None:
    """The manifest of the files as they are now: sizes, hashes, and tensor headers."""
    if not os.path.isfile(checkpoint / "manifest.json"):  # the folder was replaced
        return
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    for name in manifest["files"]:
        path = checkpoint / name
        if not os.path.isfile(path):
            continue
        content = path.read_bytes()
        manifest["files"][name] = {
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        if name in TENSORS:
            try:
                header, _ = split(content)
                described = {
                    n: {"shape": e["shape"], "dtype": DTYPES.get(e["dtype"], e["dtype"])}
                    for n, e in header.items()
                    if n != "__metadata__"
                }
                manifest["tensors"][name] = described
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                pass
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, bytes of the tensors) of a .safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def as_bytes(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Change the bytes."""
    path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def as_lines(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Change whole lines and words."""
    path.write_bytes(
        mutate_lines(rng, path.read_bytes().decode("latin-1")).encode("utf-8", "surrogatepass")
    )


def as_tree(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Change the values of JSON, YAML and headers; other files' bytes."""
    content = path.read_bytes()
    if path.suffix == ".json":
        path.write_text(
            _json(
                mutate_tree(
                    rng, json.loads(content), trees, ["files", "format", "step", "vocab_size"]
                )
            )
        )
    elif path.suffix == ".yaml":
        path.write_bytes(
            _yaml(
                mutate_tree(
                    rng,
                    yaml.safe_load(content),
                    trees,
                    ["checkpoint", "max_len", "window", "workers"],
                )
            )
        )
    elif path.suffix == ".safetensors":
        header, data = split(content)
        text = _json(
            mutate_tree(
                rng,
                header,
                [header, {"a": {"dtype": "F64"}}, {"a": {"dtype": "BOOL", "shape": []}}],
                ["dtype"],
            )
        ).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    else:
        as_bytes(rng, path, trees)


def as_bomb(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Something small that becomes large, or is nested or long beyond measure."""
    depth = rng.choice([200, 5000, 100_000])
    digits = "9" * rng.choice([400, 5000])
    bombs = [
        "[" * depth,
        "[" * depth + "]" * depth,
        '{"a":' * depth + "1" + "}" * depth,
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{k}: &{k} [{','.join([f'*{j}'] * 9)}]\n" for j,
         k in pairwise("abcdefghij")),
        "&a [*a]",
        "a: &a {b: *a}",
        f'{{"a": {digits}}}',
        f"a: {digits}",
        "[" + "1," * 2_000_000 + "1]",
        "{" + ",".join(f'"k{n}": 0' for n in range(200_000)) + "}",
        "!!python/object/apply:os.system ['touch case/executed']",
        "",
        "\0" * 5000,
        " " * 3_000_000,
    ]  # fmt: skip
    text = rng.choice(bombs).encode()
    if path.suffix == ".safetensors":
        text = len(text).to_bytes(8, "little") + text
    path.write_bytes(text)


def in_its_place(rng: random.Random, path: Path, trees: list[Any]) -> None:
    """Something else where the file was: a folder, a pipe, a link, nothing; or where `last` or the
    checkpoint was.
    """
    other = rng.choice(
        [path, path, path, path.parent.parent / "last", path.parent.parent / "best", path.parent]
    )
    if other.is_symlink() or not other.is_dir():
        other.unlink(missing_ok=True)
    else:
        shutil.rmtree(other)
    kind = rng.randrange(7)
    if kind == 0:
        other.mkdir()
    elif kind == 1:
        os.mkfifo(other)
    elif kind == 2:
        other.symlink_to(
            Path("../../../../../outside/secret.json")
            if rng.random() < 0.5
            else Path.cwd().parent / "outside"
        )
    elif kind == 3:
        other.symlink_to(other.name)  # to itself
    elif kind == 4:
        other.symlink_to(
            rng.choice(["..", ".", "/", "no/such", "a" * 300])
            if rng.random() < 0.7
            else Path.cwd() / "base" / "cnn"
        )
    elif kind == 5:
        other.write_bytes(rng.choice([b"", b"x" * 100]))


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _yaml(value: Any) -> bytes:
    return yaml.dump(value, sort_keys=False).encode("utf-8", "surrogatepass")


Change = Callable[[random.Random, Path, list[Any]], None]
KINDS: list[tuple[str, Change]] = [
    ("bytes", as_bytes), ("bytes", as_bytes), ("lines", as_lines), ("tree", as_tree),
    ("tree", as_tree), ("tree", as_tree),
    ("tree", as_tree), ("bomb", as_bomb), ("place", in_its_place),
]  # fmt: skip
