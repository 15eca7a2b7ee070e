"""`bench A --against GIT-REF`: the spec and its plugins as they are in another commit."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.console import say
from bigmodel_cli.errors import SpecError
from bigmodel_cli.inherit import BASE, MOST_FILES
from bigmodel_cli.yaml_source import read_yaml

SECONDS = 60
"""That git may take for one answer."""


@dataclass(frozen=True)
class Earlier:
    """A spec of another commit, in a folder for it; `plugins` as the variable of
    plugin_faults.py has them.
    """

    target: str
    plugins: str


@contextlib.contextmanager
def at_ref(ref: str, spec: str, plugins: Sequence[Path]) -> Iterator[Earlier]:
    """Inside, the spec and those of the plugins that are in its git repository lie in a folder as
    they are in that commit; other plugins are as they are now.

    Raises `SpecError` where there is no repository, no such commit, or no such spec in it.
    """
    path = Path(spec)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise SpecError(
            f"--against {ref}: no such file; of a git commit a spec is compared, and {spec} is no"
            " file that ends in .yaml"
        )
    root = _root(path, ref)
    commit = _asked(
        root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"
    )
    if commit is None:
        raise SpecError(
            f"--against {ref}: neither a file nor a commit, branch or tag of the git repository"
            f" {root}"
        )
    name = commit.decode().strip()
    with tempfile.TemporaryDirectory(prefix="bigmodel-") as folder:
        place = Path(folder) / re.sub(r"[^A-Za-z0-9_.~^-]+", "_", ref)
        target = _written(root, name, path, place)
        if target is None:
            raise SpecError(f"--against {ref}: {spec} is not in that commit ({name[:12]})")
        _write_bases(root, name, path, target, place)
        pairs = []
        for plugin in plugins:
            older = _written(root, name, plugin, place) if _inside(root, plugin) else None
            if older is None:
                say(f"--against {ref}: {plugin} is not in that commit; it is taken as it is now")
            pairs.append(
                (f"{plugin} at {ref}" if older else str(plugin), str(older or _full(plugin)))
            )
        yield Earlier(str(target), json.dumps(pairs))


def _write_bases(root: Path, commit: str, spec: Path, target: Path, place: Path) -> None:
    """Write the files that the spec inherits from, as they are in the commit; what is not there is
    told when the spec is read.
    """
    for _ in range(MOST_FILES):
        values = read_yaml(target).value
        named = values.get(BASE) if isinstance(values, dict) else None
        if named is None or not isinstance(named.value, str) or Path(named.value).is_absolute():
            return
        spec = spec.parent / named.value
        if not _inside(root, spec):
            return
        found = _written(root, commit, spec, place)
        if found is None:
            return
        target = found


def _full(path: Path) -> Path:
    return path.absolute()


def _inside(root: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(root)


def _root(spec: Path, ref: str) -> Path:
    """The top folder of the repository that has the spec."""
    found = _asked(spec.resolve().parent, "rev-parse", "--show-toplevel")
    if found is None:
        raise SpecError(
            f"--against {ref}: no such file, and no commit either: {spec} is in no git repository"
        )
    return Path(found.decode().rstrip("\n")).resolve()


def _written(root: Path, commit: str, path: Path, place: Path) -> Path | None:
    """The file as it is in the commit, at the same path below `place`; None where it is not."""
    inside = path.resolve().relative_to(root)
    found = _asked(root, "cat-file", "blob", f"{commit}:{inside.as_posix()}")
    if found is None:
        return None
    target = place / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(found)
    return target


def _asked(folder: Path, *words: str) -> bytes | None:
    """What git answers there; None where it refuses, or is not there."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SpecError(f"--against: git cannot be asked: {error}") from None
    return found.stdout if found.returncode == 0 else None
