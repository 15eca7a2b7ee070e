"""Where in its file a fault of a spec is."""

from __future__ import annotations

import re
from typing import Any

from bigmodel_cli.yaml_source import Node

_OPTION = re.compile(r"[a-z]\w*(\.\w+)+(?=[: ])")
"""An option's path at the beginning of a fault of several options."""


class Place:
    """The position of one of pydantic's faults: its path, its place in the file, and the value
    there.
    """

    def __init__(self, root: Node, fault: Any) -> None:
        node, self.where, self.path = root, root.where, list[str]()
        location = list(fault["loc"])
        for index, part in enumerate(location):
            if isinstance(node.value, dict) and str(part) in node.value:
                own = node.keys.get(str(part), node.where)
                node = node.value[str(part)]
                self.where = own if fault["type"] == "extra_forbidden" else node.where
                self.path.append(str(part))
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                self.where = node.where
                self.path.append(str(part))
            elif index == len(location) - 1 and fault["type"] == "missing":
                self.path.append(str(part))
            # else: the tag of a union, which is not in the file
        if fault["type"] == "value_error" and (named := _OPTION.match(str(fault["ctx"]["error"]))):
            node = self._down(node, named[0].split("."))
        self.node = node

    def _down(self, node: Node, names: list[str]) -> Node:
        """The node of the option that a fault of several options names first, as far as the file
        contains it.
        """
        if not (isinstance(node.value, dict) and names[0] in node.value):
            return node
        for name in names:
            if isinstance(node.value, dict) and name in node.value:
                node = node.value[name]
                self.where = node.where
        self.path += names
        return node

    @property
    def name(self) -> str:
        """The dotted path."""
        return ".".join(self.path) or "spec"


def position_of(node: Node, path: list[str]) -> str:
    """The position of the deepest part of an option's path that the file contains."""
    rest = list(path)
    while rest:
        inner = dict(enumerate(node.value)) if isinstance(node.value, list) else node.value
        if not isinstance(inner, dict):
            break
        # a key may have dots in it, as a pattern of names has
        for count in range(len(rest), 0, -1):
            name = ".".join(rest[:count])
            key = int(name) if name.isdigit() else name
            if key in inner:
                break
        else:
            break
        node, rest = inner[key], rest[count:]
    return node.where


def position(where: str) -> tuple[str, int, int]:
    """Sort key: options of the command line come first, then those of each file by line and
    column.
    """
    pieces = where.rsplit(":", 2)
    if (
        where.startswith("--set")
        or len(pieces) < 3
        or not (pieces[1].isdigit() and pieces[2].isdigit())
    ):
        return "", 0, 0
    return pieces[0], int(pieces[1]), int(pieces[2])
