"""Faults of a spec in plain words: where, what is wrong, and what to write instead.

Pydantic's faults are put in the order of the file. A misplaced option, or one under another tool's
name, is looked up in the whole tree of options of the types that the spec has chosen.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import pydantic

from bigmodel_cli.config import Options, required, typed
from bigmodel_cli.errors import OptionError, did_you_mean
from bigmodel_cli.explain.synonyms import closest, remark, targets
from bigmodel_cli.explain.tree import Known, classes_at, known, types_at, types_of
from bigmodel_cli.explain.values import shown, what_is_wrong
from bigmodel_cli.yaml_source import Node

MOST_FAULTS = 40
"""Most faults that are reported; a file with more is not mended by reading on."""
MOST_SORTED = 2000
MOST_PLACES = 3
LONGEST = 200
_OPTION = re.compile(r"[a-z]\w*(\.\w+)+(?=[: ])")
"""An option's path at the beginning of a fault of several options."""
NO_NOTES: Mapping[str, str] = MappingProxyType({})


def explain(
    root: Node, options: type[Options], faults: Sequence[Any], notes: Mapping[str, str] = NO_NOTES
) -> str:
    """One line for each fault, in the order of the file; `notes` are added where a slot has an
    unknown type.
    """
    tree = _Tree(root, options, notes)
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for fault in faults[
        :MOST_SORTED
    ]:  # the kinds that a value may be of have a fault each, at one place
        place = _Place(root, fault)
        unique = len(groups) if fault["type"] == "value_error" else -1
        groups.setdefault((*_position(place.where), place.where, place.name, unique), []).append(
            (place, fault)
        )
    ordered = sorted(groups.items(), key=lambda item: item[0])
    lines = [_line(tree, group) for _, group in ordered[:MOST_FAULTS]]
    more = len(ordered) - MOST_FAULTS + max(0, len(faults) - MOST_SORTED)
    if more > 0:
        lines.append(f"... and {more:,} more faults")
    return "\n".join(dict.fromkeys(lines))


def placed(root: Node, error: OptionError) -> str:
    """One line for each fault found while building, in the form of `explain`."""
    lines = []
    for path, what in error.faults:
        where = _where(root, path.split("."))
        lines.append((_position(where), f"{where}: {path}: {what}"))
    more = [f"... and {len(lines) - MOST_FAULTS:,} more faults"] if len(lines) > MOST_FAULTS else []
    return "\n".join([line for _, line in sorted(lines)[:MOST_FAULTS]] + more)


def _where(node: Node, path: list[str]) -> str:
    """The position of the deepest part of an option's path that the file contains."""
    for name in path:
        inner = dict(enumerate(node.value)) if isinstance(node.value, list) else node.value
        key = int(name) if name.isdigit() else name
        if not isinstance(inner, dict) or key not in inner:
            break
        node = inner[key]
    return node.where


class _Tree:
    """What messages are made from: the spec, and the options that exist."""

    def __init__(self, root: Node, options: type[Options], notes: Mapping[str, str]) -> None:
        self.root, self.options, self.notes = root, options, notes

    @cached_property
    def plain(self) -> Any:
        return self.root.plain()

    @cached_property
    def known(self) -> list[Known]:
        """The options that this spec may give."""
        return list(known(self.options, self.plain))


class _Place:
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


def _line(tree: _Tree, group: list[tuple[_Place, Any]]) -> str:
    place = group[0][0]
    name = place.name if len(place.name) <= LONGEST else f"{place.name[:LONGEST]}..."
    what = _what(tree, place, [fault for _, fault in group])
    return f"{place.where}: {name}: {what.removeprefix(f'{name}: ')}"


def _what(tree: _Tree, place: _Place, faults: list[Any]) -> str:
    fault, options = faults[0], tree.options
    kind, context, location = fault["type"], fault.get("ctx", {}), fault["loc"]
    if kind == "extra_forbidden":
        return "unknown option" + _where_else(tree, place, location)
    if kind == "missing":
        return "missing; this option has no default" + _as_mapping(options, place, location)
    if kind == "union_tag_not_found":
        return f"missing `type`; one of {', '.join(types_at(options, location))}" + _type_as_key(
            options, place, location
        )
    if kind == "union_tag_invalid":
        tags, tag = types_at(options, location), str(context["tag"])
        slot = next(
            part for part in reversed(place.path) if not part.isdecimal()
        )  # for an item, that of its list
        note = tree.notes.get(slot.rpartition("_")[2])
        hint = did_you_mean(tag, tags) or _none(options, place, tag)
        hint += f"; {note}" if note else ""
        return f"unknown type {shown(tag)}; one of {', '.join(tags)}{hint}"
    return what_is_wrong(faults, _as_item(options, place))


def _as_item(options: type[Options], place: _Place) -> bool:
    """Whether the value could be the only item of a list."""
    value = place.node.value
    fields = (
        [c.model_fields.get(place.path[-1]) for c in classes_at(options, place.path[:-1])]
        if place.path
        else []
    )
    for annotation in (field.rebuild_annotation() for field in fields if field is not None):
        if isinstance(value, str) and value in typed(annotation):
            return True
        with contextlib.suppress(pydantic.ValidationError):
            pydantic.TypeAdapter(annotation).validate_python([value], strict=True)
            return True
    return False


def _none(options: type[Options], place: _Place, tag: str) -> str:
    """What to write for nothing, where that is allowed and another word was written for it."""
    holders = classes_at(options, place.path[:-1])
    fields = [c.model_fields[place.path[-1]] for c in holders if place.path[-1] in c.model_fields]
    if tag.lower() in ("none", "no", "off", "false", "nil") and any(
        type(None) in _arguments(f) for f in fields
    ):
        return "; write null for none"
    return ""


def _arguments(field: Any) -> tuple[Any, ...]:
    return getattr(field.annotation, "__args__", ())


def _as_mapping(options: type[Options], place: _Place, location: tuple[Any, ...]) -> str:
    """'; write {type: X, missing: ...}' where a word stands for a mapping that needs more than its
    type.
    """
    if not isinstance(place.node.value, str):
        return ""
    classes = [c for c in classes_at(options, location[:-1]) if place.node.value in types_of(c)]
    needed = ", ".join(f"{name}: ..." for c in classes[:1] for name in required(c))
    key = "" if place.path[-2].isdecimal() else f"{place.path[-2]}: "
    return f"; write {key}{{type: {place.node.value}, {needed}}}" if needed else ""


def _type_as_key(options: type[Options], place: _Place, location: tuple[Any, ...]) -> str:
    """'; write {type: X}' for a mapping whose one key is a type."""
    keys = list(place.node.value) if isinstance(place.node.value, dict) else []
    found = [key for key in keys if key in types_at(options, location)]
    return f"; write {{type: {found[0]}, ...}} for {found[0]}: {{...}}" if found else ""


def _where_else(tree: _Tree, place: _Place, location: tuple[Any, ...]) -> str:
    """'; what to write' for an option that is unknown at its place."""
    name, options = place.path[-1], tree.options
    if len(name) > LONGEST:
        return ""
    word, colon, rest = name.partition(":")
    if colon and rest:
        return f"; write a blank after the colon: {word}: {rest}"
    siblings = [name for c in classes_at(options, location[:-1]) for name in c.model_fields]
    close = difflib.get_close_matches(name.lower().replace("-", "_"), siblings, n=1, cutoff=0.85)
    if close:
        return f"; did you mean {close[0]}?"
    if name in types_at(options, location[:-2]) and location[-2] in types_at(
        options, location[:-2]
    ):
        return f"; write type: {name} in its place"
    others = _of_other_types(options, name, location)
    found = _elsewhere(tree.known, place, name, by_name=not others)
    if found and any(
        option.path.rpartition(".")[0] == ".".join(place.path[:-1]) for option in found
    ):
        others = ""  # what is called otherwise here is what was meant
    texts = [text for text in (others, _use(found, options, tree.plain), remark(name)) if text]
    if texts:
        return "".join(f"; {text}" for text in texts)
    likely = did_you_mean(name, siblings)
    if likely:
        return likely
    likely_tree = _elsewhere(tree.known, place, closest(name)) or _called_so(tree.known, name)
    if likely_tree:
        return f"; did you mean {' or '.join(option.path for option in likely_tree)}?"
    few = (
        f"; there are {', '.join(dict.fromkeys(siblings))}" if 0 < len(set(siblings)) <= 24 else ""
    )
    return f"{few}; see `bigmodel options {_command(place, location)}`"


def _command(place: _Place, location: tuple[Any, ...]) -> str:
    """The arguments of `bigmodel options` that show the options beside the unknown one."""
    path = [name for name in place.path[:-1] if not name.isdecimal()]
    kind = str(location[-2]) if len(location) > 1 else ""
    return " ".join(
        [".".join(path), *([kind] if path and kind not in path and not kind.isdecimal() else [])]
    )


def _of_other_types(options: type[Options], name: str, location: tuple[Any, ...]) -> str:
    """Which other types have the option, where one of several was chosen."""
    own = location[-2] if len(location) > 1 else None
    if own not in types_at(options, location[:-2]):
        return ""
    others = [types_of(c)[0] for c in classes_at(options, location[:-2]) if name in c.model_fields]
    return (
        f"type: {', '.join(others)} ha{'s' if len(others) == 1 else 've'} it, and this is {own}"
        if others
        else ""
    )


def _called_so(tree: list[Known], name: str) -> list[Known]:
    """The options with the name most similar to the word."""
    names = difflib.get_close_matches(name, {option.name for option in tree}, n=1, cutoff=0.8)
    return [option for option in tree if option.name in names][:MOST_PLACES]


def _elsewhere(tree: list[Known], place: _Place, name: str, by_name: bool = True) -> list[Known]:
    """The options of that name, or of other tools' name; those of the same section first, then the
    shortest.
    """
    wanted = targets(name)
    found = [
        option
        for option in tree
        if (by_name and option.name == name and name != "type")
        or any(option.path == target or option.path.endswith(f".{target}") for target in wanted)
    ]
    section = place.path[0]
    found.sort(
        key=lambda option: (
            option.name != name,
            option.path.split(".")[0] != section,
            option.path.count("."),
        )
    )
    return found[:MOST_PLACES]


def _use(found: list[Known], options: type[Options], plain: Any) -> str:
    """'use a.b, or c.d': and which of them are given already, or excluded by another."""
    texts = []
    for option in found:
        section, _, name = option.path.rpartition(".")
        others = [
            w
            for c in classes_at(options, section.split("."))
            for p in c.exclusive
            if name in p
            for w in p
            if w != name
        ]
        values = plain.get(section)
        stand = [w for w in others if isinstance(values, dict) and values.get(w) is not None]
        if option.given:
            value = option.value
            texts.append(
                option.path
                + (
                    " (given already)"
                    if isinstance(value, dict | list)
                    else f" ({shown(value)} now)"
                )
            )
        else:
            texts.append(option.path + (f" (instead of {section}.{stand[0]})" if stand else ""))
    return f"use {', or '.join(texts)}" if texts else ""


def _position(where: str) -> tuple[str, int, int]:
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
