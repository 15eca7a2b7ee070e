"""Faults of a spec in plain words: where, what is wrong, and what to write instead.

Pydantic's faults are put in the order of the file. A misplaced option, or one under another tool's
name, is looked up in the whole tree of options of the types that the spec has chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args

import pydantic

from bigmodel_cli.config import Options, required, typed
from bigmodel_cli.errors import OptionError, did_you_mean
from bigmodel_cli.explain.places import Place, position, position_of
from bigmodel_cli.explain.tree import classes_at, fields_at, types_at, types_of
from bigmodel_cli.explain.unknown import LONGEST, Tree, what_instead
from bigmodel_cli.explain.values import shown, what_is_wrong
from bigmodel_cli.yaml_source import Node

MOST_FAULTS = 40
"""Most faults that are reported; a file with more is not mended by reading on."""
MOST_SORTED = 2000
NO_NOTES: Mapping[str, str] = MappingProxyType({})


def explain(
    root: Node, options: type[Options], faults: Sequence[Any], notes: Mapping[str, str] = NO_NOTES
) -> str:
    """One line for each fault, in the order of the file; `notes` are added where a slot has an
    unknown type.
    """
    tree = Tree(root, options, notes)
    groups: dict[tuple[Any, ...], list[Any]] = {}
    # the kinds that a value may be of have a fault each, at one place
    for fault in faults[:MOST_SORTED]:
        place = Place(root, fault)
        unique = len(groups) if fault["type"] == "value_error" else -1
        groups.setdefault((*position(place.where), place.where, place.name, unique), []).append(
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
        where = position_of(root, path.split("."))
        lines.append((position(where), f"{where}: {path}: {what}"))
    more = [f"... and {len(lines) - MOST_FAULTS:,} more faults"] if len(lines) > MOST_FAULTS else []
    return "\n".join([line for _, line in sorted(lines)[:MOST_FAULTS]] + more)


def _line(tree: Tree, group: list[tuple[Place, Any]]) -> str:
    place = group[0][0]
    name = place.name if len(place.name) <= LONGEST else f"{place.name[:LONGEST]}..."
    what = _what(tree, place, [fault for _, fault in group])
    return f"{place.where}: {name}: {what.removeprefix(f'{name}: ')}"


def _what(tree: Tree, place: Place, faults: list[Any]) -> str:
    fault, options = faults[0], tree.options
    kind, context, location = fault["type"], fault.get("ctx", {}), fault["loc"]
    if kind == "extra_forbidden":
        return "unknown option" + what_instead(tree, place, location)
    if kind == "missing":
        return "missing; this option has no default" + _as_mapping(options, place, location)
    if kind == "union_tag_not_found":
        return f"missing `type`; one of {', '.join(types_at(options, location))}" + _type_as_key(
            options, place, location
        )
    if kind == "union_tag_invalid":
        tags, tag = types_at(options, location), str(context["tag"])
        # for an item, that of its list
        slot = next(part for part in reversed(place.path) if not part.isdecimal())
        note = tree.notes.get(slot.rpartition("_")[2])
        hint = did_you_mean(tag, tags) or _none(options, place, tag)
        hint += f"; {note}" if note else ""
        return f"unknown type {shown(tag)}; one of {', '.join(tags)}{hint}"
    return what_is_wrong(faults, _as_item(options, place))


def _as_item(options: type[Options], place: Place) -> bool:
    """Whether the value could be the only item of a list."""
    value = place.node.value
    for annotation in (f.rebuild_annotation() for f in fields_at(options, place.path)):
        if isinstance(value, str) and value in typed(annotation):
            return True
        with contextlib.suppress(pydantic.ValidationError):
            pydantic.TypeAdapter(annotation).validate_python([value], strict=True)
            return True
    return False


def _none(options: type[Options], place: Place, tag: str) -> str:
    """What to write for nothing, where that is allowed and another word was written for it."""
    optional = any(type(None) in get_args(f.annotation) for f in fields_at(options, place.path))
    meant = tag.lower() in ("none", "no", "off", "false", "nil")
    return "; write null for none" if optional and meant else ""


def _as_mapping(options: type[Options], place: Place, location: tuple[Any, ...]) -> str:
    """'; write {type: X, missing: ...}' where a word stands for a mapping that needs more than its
    type.
    """
    if not isinstance(place.node.value, str):
        return ""
    classes = [c for c in classes_at(options, location[:-1]) if place.node.value in types_of(c)]
    needed = ", ".join(f"{name}: ..." for c in classes[:1] for name in required(c))
    key = "" if place.path[-2].isdecimal() else f"{place.path[-2]}: "
    return f"; write {key}{{type: {place.node.value}, {needed}}}" if needed else ""


def _type_as_key(options: type[Options], place: Place, location: tuple[Any, ...]) -> str:
    """'; write {type: X}' for a mapping whose one key is a type."""
    keys = list(place.node.value) if isinstance(place.node.value, dict) else []
    types = [key for key in keys if key in types_at(options, location)]
    return f"; write {{type: {types[0]}, ...}} for {types[0]}: {{...}}" if types else ""
