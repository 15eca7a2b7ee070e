"""The description of all options, made from the spec's JSON Schema, with examples from the sample
specs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bigmodel_cli.catalog import samples, schema
from bigmodel_cli.options.tree import ROOT, Tree, Values, classes_of, is_list
from bigmodel_cli.yaml_scalars import dump_yaml
from bigmodel_cli.yaml_source import parse_yaml

WIDTH = 88


def describe() -> dict[str, Any]:
    """{"schema", "examples": {class: YAML}, "values": {class: {option: YAML}}, "paths": {path: the
    types there}}.
    """
    values = schema()
    tree = Tree(values)
    paths: dict[str, list[str]] = {}
    for path, classes in tree.paths():
        words = [word for name in classes for word in tree.types(name)]
        paths[path] = list(dict.fromkeys([*paths.get(path, ()), *words]))
    return {"schema": values, **_examples(tree), "paths": paths}


def _examples(tree: Tree) -> dict[str, Any]:
    """The samples' shortest use of each class and each option; without one, the minimal mapping."""
    classes: dict[str, list[Any]] = {}
    options: dict[tuple[str, str], list[Any]] = {}
    for text in samples().values():
        plain = parse_yaml(text.encode(), "sample").plain()
        for name, value in _uses(tree, plain, tree.classes[ROOT], [ROOT], {}):
            classes.setdefault(name, []).append(value)
            for option in value.keys() & tree.properties(name).keys():
                options.setdefault((name, option), []).append(value[option])
    examples = {
        name: _shortest(classes[name]) if name in classes else _text(_least(tree, name))
        for name in tree.classes
    }
    whole = [uses for uses in classes[ROOT] if set(tree.classes[ROOT]["required"]) <= uses.keys()]
    values: dict[str, dict[str, str]] = {}
    for name in tree.classes:
        for option, values_ in tree.properties(name).items():
            given = [value for value in options.get((name, option), ()) if value is not None]
            default = values_.get("default")
            text = (
                _shortest(given)
                if given
                else _text(_value(tree, values_) if default is None else default)
            )
            values.setdefault(name, {})[option] = text
    return {"examples": {**examples, ROOT: _shortest(whole)}, "values": values}


def _uses(
    tree: Tree, value: Any, values: Values, classes: list[str], default: Any
) -> Iterator[tuple[str, Values]]:
    """(class, mapping) of each mapping of options in a plain value, its type written out."""
    if isinstance(value, list):
        for item in value:
            yield from _uses(tree, item, values, classes, default)
        return
    name = tree.chosen(classes, value, default)
    if name is None:
        return
    given = value if isinstance(value, dict) else {"type": value}
    given = {n: v for n, v in given.items() if not n.startswith("x-")}
    yield (
        name,
        (
            given
            if "type" in given or not tree.types(name)
            else {"type": tree.types(name)[0], **given}
        ),
    )
    for option, inner in given.items():
        below = tree.properties(name).get(option, {})
        yield from _uses(tree, inner, below, classes_of(below), below.get("default"))


def _shortest(uses: list[Any]) -> str:
    """The shortest mapping that has more than a type."""
    return min(
        map(_text, uses),
        key=lambda text: (text.startswith("{type: ") and "," not in text, len(text), text),
    )


def _text(value: Any) -> str:
    return dump_yaml(value, WIDTH, flow=None).removesuffix("\n").removesuffix("\n...")


def _least(tree: Tree, name: str) -> Values:
    """The minimal mapping of the class."""
    if whole := tree.classes[name].get("examples"):  # where one of several options is needed
        return dict(whole[0])
    needed = tree.classes[name].get("required", ())
    kind = {"type": tree.types(name)[0]} if tree.types(name) else {}
    return kind | {option: _value(tree, tree.properties(name)[option]) for option in needed}


def _value(tree: Tree, values: Values) -> Any:
    """An example of a value of this schema."""
    if "examples" in values:
        return values["examples"][0]
    for inner in (*values.get("anyOf", ()), *values.get("oneOf", ())):
        if inner.get("type") != "null":
            return _value(tree, inner)
    if "$ref" in values:
        return _least(tree, classes_of(values)[0])
    if is_list(values):
        items = values.get("items") or values.get("prefixItems", [{}])[0]
        return [_value(tree, items)] * values.get("minItems", 1)
    least: int = max(values.get("minimum", 0), values.get("exclusiveMinimum", -1) + 1, 1)
    bound = float(values.get("exclusiveMaximum") or values.get("maximum") or 10**9)
    kinds: Values = {
        "integer": int(min(least, bound)),
        "number": float(least) if least < bound else bound / 2,
        "boolean": True,
        "object": {},
    }
    return values.get("const") or next(
        iter(values.get("enum", ())), kinds.get(values.get("type", ""), "...")
    )
