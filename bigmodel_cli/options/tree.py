"""The JSON Schema of a spec as a tree of classes of options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Values = dict[str, Any]
ROOT = ""
"""The class of the spec itself; other classes have the names of the schema's definitions."""


class Tree:
    """A schema's classes of options by name."""

    def __init__(self, schema: Values) -> None:
        self.classes: dict[str, Values] = {ROOT: schema, **schema["$defs"]}

    def properties(self, name: str) -> Values:
        """The options of a class, each with its schema."""
        found: Values = self.classes[name].get("properties", {})
        return found

    def types(self, name: str) -> list[str]:
        """The values of `type` in a class, one as a rule; none where there is no type."""
        values = self.properties(name).get("type", {})
        return [values["const"]] if "const" in values else list(values.get("enum", ()))

    def chosen(self, classes: list[str], value: Any, default: Any) -> str | None:
        """The class of a plain value: by its `type`, or the default's; None where none matches."""
        if isinstance(value, dict):
            usual = default.get("type") if isinstance(default, dict) else None
            kind = value.get("type", usual)
            if kind is None and len(classes) == 1:
                return classes[0]
        else:
            kind = value
        return next((name for name in classes if kind in self.types(name)), None)

    def paths(
        self, name: str = ROOT, above: str = "", seen: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, list[str]]]:
        """(path, classes there) of every option; recursive classes are entered once."""
        for option, values in self.properties(name).items():
            if option == "type":
                continue
            path, classes = f"{above}.{option}" if above else option, classes_of(values)
            yield path, classes
            for inner in classes:
                if inner not in seen:
                    yield from self.paths(inner, path, (*seen, inner))


def classes_of(values: Values) -> list[str]:
    """The classes of options of a value with this schema, or of an item of its list."""
    found = [values["$ref"].rpartition("/")[2]] if "$ref" in values else []
    items = values.get("items")
    for inner in (*values.get("anyOf", ()), *values.get("oneOf", ()), *([items] if items else [])):
        found += classes_of(inner)
    return list(dict.fromkeys(found))


def is_list(values: Values) -> bool:
    """Whether a value with this schema is, or may be, a list."""
    return values.get("type") == "array" or any(map(is_list, values.get("anyOf", ())))
