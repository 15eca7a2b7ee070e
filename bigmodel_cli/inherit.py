"""`base: other.yaml` at the top of a spec: inherits what the file itself does not say.

Mappings are merged deeply, and the upper file wins; a list, and a mapping of another `type`,
replace those below. Every value keeps its position in its own file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bigmodel_cli.config import Options
from bigmodel_cli.console import say
from bigmodel_cli.errors import SpecError
from bigmodel_cli.explain.tree import classes_at, default_type, types_at
from bigmodel_cli.yaml_source import Node, read_yaml

BASE = "base"
MOST_FILES = 20
"""Longest chain of bases."""


def read_inheriting(path: Path, options: type[Options]) -> Node:
    """The tree of a file, whose root is typed as `options`, merged with those that it inherits
    from.

    Paths are relative to the folder of the file that names them. Raises `SpecError`.
    """
    return _read(path, options, [])


def _read(path: Path, options: type[Options], above: list[Path]) -> Node:
    root = read_yaml(path)
    if not isinstance(root.value, dict) or BASE not in root.value:
        return root
    named = root.value.pop(BASE)
    if not isinstance(named.value, str) or not named.value:
        raise SpecError(f"{named.where}: {BASE}: the path of one other spec is due here")
    chain, below = [*above, path], path.parent / os.path.expanduser(named.value)
    if os.path.realpath(below) in map(os.path.realpath, chain):
        raise SpecError(
            f"{named.where}: {BASE}: a circle: {' -> '.join(map(str, [*chain, below]))}; take one"
            " base out"
        )
    if len(chain) >= MOST_FILES:
        raise SpecError(
            f"{named.where}: {BASE}: more than {MOST_FILES} files, each the base of the one"
            " above it"
        )
    try:
        inherited = _read(below, options, chain)
    except SpecError as error:
        # of the file as a whole: its own faults have positions
        if str(error).startswith(f"{below}: "):
            raise SpecError(f"{named.where}: {BASE}: {error}") from None
        raise
    if inherited.value is None:
        raise SpecError(f"{named.where}: {BASE}: {below} is empty; name a spec")
    if not isinstance(inherited.value, dict):
        return inherited  # which is reported as a fault of that file
    return _joined(inherited, root, options, [])


def _joined(below: Node, above: Node, options: type[Options], path: list[str]) -> Node:
    """The merged value at a path that both files have."""
    words = types_at(options, path)
    lower, upper = _mapping(below, words), _mapping(above, words)
    if lower is None or upper is None:
        return above
    usual = default_type(options, path)
    kinds = [values["type"].value if "type" in values else usual for values in (lower, upper)]
    if "type" in upper and kinds[0] not in (None, kinds[1]):
        return above
    base = _without_alternatives(lower, upper, options, path)
    values = {
        **base,
        **{
            n: _joined(base[n], v, options, [*path, n]) if n in base else v
            for n, v in upper.items()
        },
    }
    return Node(values, above.where, {**below.keys, **above.keys})


def _mapping(node: Node, words: list[str]) -> dict[str, Node] | None:
    """The mapping at a path, or the one that a word stands for; None for any other value."""
    if isinstance(node.value, str) and node.value in words:
        return {"type": Node(node.value, node.where)}
    return node.value if isinstance(node.value, dict) else None


def _without_alternatives(
    lower: dict[str, Node], upper: dict[str, Any], options: type[Options], path: list[str]
) -> dict[str, Node]:
    """The values of the base, without alternatives of those in the upper file (epochs instead of
    steps).
    """
    kept = dict(lower)
    for pair in {pair for c in classes_at(options, path) for pair in c.exclusive}:
        for name, other in (pair, pair[::-1]):
            given = name in upper and upper[name].value is not None
            if given and other not in upper and other in kept and kept[other].value is not None:
                section = ".".join(path)
                text = (
                    f"{section}.{name}: {upper[name].value} is taken instead of {section}.{other}:"
                    f" {kept[other].value}"
                )
                say(f"{text} of the base")
                del kept[other]
    return kept
