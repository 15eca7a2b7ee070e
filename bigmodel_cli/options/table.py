"""Options for people: a table, and an example of the part in YAML, in its place."""

from __future__ import annotations

import json
import re
from typing import Any

from bigmodel_cli.console import table
from bigmodel_cli.options.lookup import Found
from bigmodel_cli.options.tree import Tree, Values, classes_of

MOST_TYPES = 4
"""A table names at most this many types."""
REQUIRED = "required"
COLUMNS = ["option", "type", "default", "bounds", "what it is"]
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
_BOUNDS = (
    ("minimum", ">= {:,}"),
    ("exclusiveMinimum", "> {:,}"),
    ("maximum", "<= {:,}"),
    ("exclusiveMaximum", "< {:,}"),
    ("minItems", "{} or more"),
    ("maxItems", "at most {}"),
)


def to_json(known: dict[str, Any], found: Found) -> dict[str, Any]:
    """What is at a path: its types where there are several, else its options, each as a mapping;
    and an example.
    """
    tree = Tree(known["schema"])
    values: dict[str, Any] = {"path": found.path, "about": _about(tree, found)}
    if len(found.classes) > 1:
        values["types"] = _types(tree, found)
    else:
        values["options"] = [
            {
                "name": name,
                "type": kind,
                "required": default == REQUIRED,
                "bounds": bounds,
                "description": what,
            }
            | ({} if default == REQUIRED else {"default": default})
            for name, kind, default, bounds, what in _rows(tree, found)
        ]
    return {**values, "example": example(known, found)}


def to_text(known: dict[str, Any], found: Found) -> str:
    tree = Tree(known["schema"])
    about = _about(tree, found) if found.classes else ""
    if len(found.classes) > 1:
        shown = table(["type", "what it is"], list(map(list, _types(tree, found).items())))
        more = f"bigmodel options {found.path} TYPE: the options of one"
    else:
        rows = _rows(tree, found)
        shown = table(COLUMNS, rows)
        inner = next(
            (row[0] for row in rows if classes_of(_schemas(tree, found).get(row[0], {}))), None
        )
        path = ".".join(filter(None, (found.path, inner)))
        more = f"bigmodel options {path}: what there is in that" if inner and found.classes else ""
    return "\n\n".join(
        filter(None, (about, shown, f"For example:\n\n{example(known, found)}", more))
    )


def example(known: dict[str, Any], found: Found) -> str:
    """YAML of the part, indented below its path."""
    tree = Tree(known["schema"])
    if found.classes:
        wanted = [_default(values).get("type") for _, values in found.holders]
        usual = [name for name in found.classes if any(word in wanted for word in tree.types(name))]
        text = known["examples"][(usual or found.classes)[0]]
        lines = (
            re.sub(r"type: \w+", f"type: {found.kind}", text, count=1) if found.kind else text
        ).splitlines()
    else:
        holder, _ = found.holders[0]
        lines = known["values"][holder][found.steps[-1][0]].splitlines()
    for depth, (name, listed) in enumerate(reversed(found.steps)):
        if listed and (depth or found.classes):
            lines = [("- " if index == 0 else "  ") + line for index, line in enumerate(lines)]
        plain = len(lines) == 1 and not (depth and ": " in lines[0] and lines[0][0] not in "{['\"")
        lines = (
            [f"{name}: {lines[0]}"]
            if plain and not lines[0].startswith("- ")
            else _below(name, lines)
        )
    return "\n".join(lines)


def _below(name: str, lines: list[str]) -> list[str]:
    return [f"{name}:", *(f"  {line}" for line in lines)]


def _about(tree: Tree, found: Found) -> str:
    """A line on the option, and one on its class where there is only one."""
    lines = []
    for _, values in found.holders[:1]:
        lines.append(f"{found.path}: {values.get('description', '')} ({_kind(tree, values)})")
    if len(found.classes) == 1 and found.path:
        types = tree.types(found.classes[0])
        word = found.kind or (types[0] if len(types) == 1 else "")
        lines.append(f"{word}: {_line(tree, found.classes[0])}".removeprefix(": "))
    return "\n".join(lines)


def _types(tree: Tree, found: Found) -> dict[str, str]:
    return {word: _line(tree, name) for name in found.classes for word in tree.types(name)}


def _line(tree: Tree, name: str) -> str:
    return " ".join(tree.classes[name].get("description", "").split("\n\n")[0].split())


def _schemas(tree: Tree, found: Found) -> Values:
    return tree.properties(found.classes[0]) if found.classes else {}


def _rows(tree: Tree, found: Found) -> list[list[str]]:
    """Rows of `COLUMNS` for each option of the class; for a plain option its own, one for each of
    its meanings.
    """
    if found.classes:
        name = found.classes[0]
        one = len(tree.types(name)) == 1  # which is chosen already
        options = [
            (name, option, v)
            for option, v in tree.properties(name).items()
            if not (one and option == "type")
        ]
    else:
        options = [(name, found.steps[-1][0], v) for name, v in found.holders]
    rows = [
        [
            option,
            _kind(tree, v),
            _default_of(tree, name, option, v),
            _bounds(v),
            v.get("description", ""),
        ]
        for name, option, v in options
    ]
    return [row for index, row in enumerate(rows) if row not in rows[:index]]


def _default_of(tree: Tree, name: str, option: str, values: Values) -> str:
    if option in tree.classes[name].get("required", ()):
        return REQUIRED
    return _spelled(values["default"]) if "default" in values else ""


def _kind(tree: Tree, values: Values) -> str:
    """The kind of a value, in words."""
    classes = classes_of(values)
    words = [word for name in classes for word in tree.types(name)]
    if "const" in values:
        return str(values["const"])
    if "enum" in values:
        return f"one of {', '.join(map(str, values['enum']))}"
    if values.get("type") == "array":
        return f"list of {_kind(tree, values['items'])}" if values.get("items") else "list"
    if "oneOf" in values or "$ref" in values:
        if not words:
            return "mapping"
        return f"{len(words)} types" if len(words) > MOST_TYPES else f"type {' or '.join(words)}"
    if "anyOf" in values:
        # The first one includes what a word, or a mapping without a type, stands for.
        whole = any("oneOf" in inner for inner in values["anyOf"])
        other = [v for v in values["anyOf"] if not (words and set(v.get("enum", ())) & set(words))]
        return " or ".join(
            dict.fromkeys(_kind(tree, v) for v in other if not (whole and "$ref" in v))
        )
    return _KINDS.get(values.get("type", ""), "anything")


def _bounds(values: Values) -> str:
    own = [form.format(_whole(values[name])) for name, form in _BOUNDS if name in values]
    inner = [_bounds(v) for v in values.get("anyOf", ())] if not own else []
    return ", ".join(own) or next(filter(None, inner), "")


def _whole(bound: float) -> float:
    return int(bound) if bound == int(bound) else bound


def _default(values: Values) -> Values:
    default = values.get("default")
    return default if isinstance(default, dict) else {}


def _spelled(value: Any) -> str:
    """A default as written in YAML; of a mapping its type."""
    if isinstance(value, dict):
        return str(value["type"]) if "type" in value else "defaults" if value else "{}"
    return value if isinstance(value, str) else json.dumps(value)
