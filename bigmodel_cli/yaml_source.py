"""YAML to values with positions: every later fault of a spec can name its file, line and column.

The tree is built from the parser's events, so size, depth, aliases, tags and duplicate keys are
checked before anything is constructed. `<<: *anchor` merges a mapping.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.yaml_scalars import plain_scalar
from bigmodel_cli.yaml_syntax import in_plain_words

MAX_BYTES = 1_000_000
MAX_DEPTH = 100
MAX_NODES = 20_000
MAX_RESOLVED, MAX_RESOLVED_NODES = 8_000_000, 100_000
"""Limits in bytes and values of a resolved spec, which spells out every option."""
MOST_FAULTS = 40
"""Most faults that are reported."""
PATIENCE = 10
"""Seconds to wait for a spec from a pipe."""

_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")
} | {"!"}


@dataclass
class Node:
    """A value of the tree and its position; `keys` has the position of each key of a mapping."""

    value: Any  # dict[str, Node], list[Node], or a scalar
    where: str
    keys: dict[str, str] = field(default_factory=dict)
    size: int = 1

    def plain(self) -> Any:
        """The value without positions: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def tree_of(value: Any, place: str) -> Node:
    """Plain values as a tree whose nodes all have the same position."""
    if isinstance(value, Mapping):
        return Node(
            {str(k): tree_of(v, place) for k, v in value.items()},
            place,
            {str(k): place for k in value},
        )
    if isinstance(value, list):
        return Node([tree_of(v, place) for v in value], place)
    return Node(value, place)


def read_yaml(path: Path, most: int = MAX_BYTES, most_nodes: int = MAX_NODES) -> Node:
    """Read a spec file, or what is written into a pipe.

    Raises `SpecError` for one that is missing, too large, not UTF-8 or not YAML.
    """
    try:
        content = _bounded(path, most)
    except FileNotFoundError:
        raise SpecError(
            f"{path}: no such file{_near(path) or '; `bigmodel init NAME` writes a sample spec'}"
        ) from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(content, str(path), most, most_nodes)


def _near(path: Path) -> str:
    """'; did you mean ...?' for the spec beside it with the most similar name, or ''."""
    try:
        names = [name for name in os.listdir(path.parent) if name.endswith((".yaml", ".yml"))]
    except OSError:
        return ""
    hint = did_you_mean(path.name if path.suffix else f"{path.name}.yaml", names)
    near = next((name for name in names if hint and f" {name}?" in hint), "")
    return f"; did you mean {path.parent / near}?" if near else ""


def _bounded(path: Path, most: int) -> bytes:
    """The bytes of a file or pipe, at most `most`.

    A device is not opened, and a pipe is waited for only briefly.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        hint = f", such as {path / 'spec.yaml'}" if os.path.isfile(path / "spec.yaml") else ""
        raise SpecError(f"{path}: this is a folder; name a spec file (.yaml){hint}")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
        raise SpecError(f"{path}: this is a device or a socket; name a spec file (.yaml)")
    if status.st_size > most:
        raise SpecError(
            f"{path}: {status.st_size:,} bytes; a spec has at most {most:,}. Is this the right"
            " file?"
        )
    content, end = b"", time.monotonic() + PATIENCE
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    try:
        while len(content) <= most:
            left = end - time.monotonic()
            if left <= 0 or not waiting.poll(1000 * left):
                raise SpecError(
                    f"{path}: nothing more came through this pipe within {PATIENCE} s; name a spec"
                    " file (.yaml)"
                )
            piece = os.read(descriptor, most)
            if not piece:
                return content
            content += piece
    finally:
        os.close(descriptor)
    raise SpecError(f"{path}: more than {most:,} bytes; a spec has fewer. Is this the right file?")


def parse_yaml(
    content: bytes, name: str, most: int = MAX_BYTES, most_nodes: int = MAX_NODES
) -> Node:
    """Parse YAML text; `name` stands for the file in messages.

    A byte order mark and CRLF line ends are accepted.
    """
    if len(content) > most:
        raise SpecError(f"{name}: {len(content):,} bytes; a spec has at most {most:,}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise SpecError(
            f"{name}:{line}:{column}: not UTF-8 (byte 0x{content[error.start]:02x}); save it as"
            " UTF-8"
        ) from None
    return _Builder(name, most=most_nodes).build(text)


def parse_value(text: str, where: str) -> Node:
    """The value of ``--set KEY=VALUE``, read as YAML (`3`, `1e-3`, `[1, 2]`, `{type: adamw}`), with
    the option itself as position.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise SpecError(
            f"{where}: not UTF-8; name a file of such a name by a glob, as in data.files=['*.txt']"
        ) from None
    builder = _Builder(where, fixed_place=True)
    return builder.build(text) if text.strip() else Node(None, where)


class _Builder:
    """Builds the tree from parser events, collecting the faults that do not stop the parse."""

    def __init__(self, name: str, *, fixed_place: bool = False, most: int = MAX_NODES) -> None:
        self.name, self.fixed_place = name, fixed_place
        self.anchors: dict[str, Node] = {}
        self.faults: list[str] = []
        self.nodes, self.most = 0, most

    def build(self, text: str) -> Node:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            events = iter(yaml.parse(text, Loader=loader))
            root = Node(None, self.place(None))
            documents = 0
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        raise SpecError(
                            f"{self.place(event)}: a second document (`---`); a spec is one"
                            " document"
                        )
                elif isinstance(event, yaml.NodeEvent):
                    root = self.node(event, events, 0)
        except yaml.YAMLError as error:
            raise SpecError(self.syntax_message(error, text)) from None
        if self.faults:
            more = len(self.faults) - MOST_FAULTS
            raise SpecError(
                "\n".join(
                    self.faults[:MOST_FAULTS] + [f"... and {more:,} more faults"] * (more > 0)
                )
            )
        return root

    def place(self, event: Any) -> str:
        if self.fixed_place:
            return self.name
        if event is None:
            return f"{self.name}:1:1"
        return f"{self.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"

    def syntax_message(self, error: yaml.YAMLError, text: str) -> str:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        begun = getattr(error, "context_mark", None)
        lines = text.splitlines()
        here = "" if mark is None or mark.line >= len(lines) else lines[mark.line]
        since = None if begun is None or mark is None or begun.line == mark.line else begun.line + 1
        plain = in_plain_words(
            what, getattr(error, "context", None) or "", here[mark.column :] if mark else "", since
        )
        if mark is None or self.fixed_place:
            return f"{self.name}: not valid YAML: {plain}"
        return f"{self.name}:{mark.line + 1}:{mark.column + 1}: not valid YAML: {plain}"

    def node(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        where = self.place(event)
        if depth > MAX_DEPTH:
            raise SpecError(f"{where}: nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise SpecError(f"{where}: *{event.anchor} has no anchor &{event.anchor} before it")
            node = self.anchors[event.anchor]
            self.count(node.size, where)
            return node
        if event.tag is not None and event.tag not in _PLAIN_TAGS:
            self.faults.append(
                f"{where}: the tag {event.tag!r} is not allowed; a spec holds plain values only"
            )
        self.count(1, where)
        before = self.nodes
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0]  # else it is quoted, or tagged
            node = Node(plain_scalar(event.value) if plain else event.value, where)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(self.sequence(events, depth), where)
        else:
            node = self.mapping(events, depth, where)
        node.size = 1 + self.nodes - before
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def count(self, more: int, where: str) -> None:
        self.nodes += more
        if self.nodes > self.most:
            raise SpecError(
                f"{where}: more than {self.most:,} values once its aliases are followed; name many"
                " files by their folder or a glob"
            )

    def sequence(self, events: Iterator[Any], depth: int) -> list[Node]:
        items = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self.node(event, events, depth + 1))
        return items

    def mapping(self, events: Iterator[Any], depth: int, where: str) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, str] = {}
        merged: list[Node] = []
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key, place = self.node(event, events, depth + 1), self.place(event)
            value = self.node(next(events), events, depth + 1)
            if isinstance(key.value, dict | list):
                self.faults.append(f"{place}: a key must be a word, not a list or a mapping")
                continue
            name = event.value if isinstance(event, yaml.ScalarEvent) else str(key.value)
            if name == "<<":
                merged += value.value if isinstance(value.value, list) else [value]
            elif name in values:
                self.faults.append(
                    f"{place}: {name}: given twice (first at {keys[name]}); keep one"
                )
            else:
                values[name], keys[name] = value, place
        for other in merged:
            if not isinstance(other.value, dict):
                self.faults.append(f"{other.where}: `<<` merges a mapping, and this is not one")
                continue
            for name, value in other.value.items():
                if name not in values:
                    values[name], keys[name] = value, other.keys[name]
        return Node(values, where, keys)
