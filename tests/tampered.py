"""Checkpoints that were changed by somebody and signed anew, so that what is behind the hashes is
tested.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

from bigmodel_cli import checkpoints, models
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.spec import from_dict
from bigmodel_cli.yaml_source import parse_yaml

FIXTURE = ROOT / "tests" / "checkpoints" / "format1"
STEP = "step-00000060"
MOST_MEMORY, MOST_SECONDS = 200_000_000, 4.0  # a second on a machine that does nothing else


def fresh_copy() -> Path:
    """The committed checkpoint of a run in the current folder, and its training text."""
    target = Path("run/checkpoints") / STEP
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree(FIXTURE / STEP, target)
    shutil.copy(FIXTURE / "text.txt", "text.txt")
    return target


def present_spec(checkpoint: Path) -> Path:
    """The checkpoint's spec, as spec.yaml here, with options called as they are today."""
    values = parse_yaml((checkpoint / "spec.yaml").read_bytes(), "spec.yaml").plain()
    Path("spec.yaml").write_text(from_dict(values).to_yaml())
    return Path("spec.yaml")


def sign(checkpoint: Path, *, describe: bool = True) -> None:
    """Let the manifest agree with all files that are there, and with their tensors."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = {
        p.name: p.read_bytes()
        for p in sorted(checkpoint.iterdir())
        if p.name != "manifest.json" and p.is_file()
    }
    manifest["files"] = {
        n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()
    }
    if describe:
        from safetensors.torch import load

        for name in ("model.safetensors", "train_state.safetensors"):
            tied = {n: e for n, e in manifest["tensors"][name].items() if "tied_to" in e}
            manifest["tensors"][name] = {**checkpoints.safe.describe(load(files[name])), **tied}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def change_json(checkpoint: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change the values of a JSON file, and sign; `change` gives the new values, or None where it
    changed them in place.
    """
    values = json.loads((checkpoint / name).read_text())
    values = change(values) or values
    (checkpoint / name).write_text(json.dumps(values))
    if name != "manifest.json":
        sign(checkpoint)


def change_spec(checkpoint: Path, change: Callable[[Any], Any]) -> None:
    """Change the values of the spec in place, and sign."""
    values = yaml.safe_load((checkpoint / "spec.yaml").read_text())
    change(values)
    (checkpoint / "spec.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    sign(checkpoint)


def change_tensors(
    checkpoint: Path, name: str, change: Callable[[dict[str, Any]], Any], sure: bool = True
) -> None:
    """Change the tensors of a file in place, and sign."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / name)
    change(tensors)
    save_file(tensors, checkpoint / name)
    sign(checkpoint, describe=sure)


def saved(spec: dict[str, Any], info: DatasetInfo) -> Path:
    """A checkpoint with first weights of a network, in the current folder."""
    typed = from_dict(spec)
    weights = dict(models.build(typed.model, info).state_dict())
    contents = checkpoints.Contents(1, weights, {}, {"step": 1}, typed.to_dict(), info.to_json())
    return checkpoints.save(Path("made/checkpoints"), contents)


def container(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with this header, which may claim another length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """What is done inside takes at most 200 MB more than there was, and little of the processor's
    time.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in use now
    before, start = _memory("VmRSS"), time.process_time()
    yield
    assert _memory("VmHWM") - before < MOST_MEMORY
    assert time.process_time() - start < MOST_SECONDS


def _memory(name: str) -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) * 1024


def node(path: Path, kind: str) -> None:
    """Put something else in the place of a file or folder."""
    outside = Path("outside").resolve()
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(outside, ignore_errors=True)
        path.rename(outside)
    elif path.exists():
        path.rename(outside)
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(outside)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "socket":
        import socket

        short = os.path.relpath(path)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(short)
