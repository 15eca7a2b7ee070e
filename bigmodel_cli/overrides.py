"""``--set KEY=VALUE``: options by path, put into the parsed YAML before it is typed."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeAlias

from bigmodel_cli.config import Options
from bigmodel_cli.console import say
from bigmodel_cli.errors import SpecError
from bigmodel_cli.explain.tree import classes_at, types_at
from bigmodel_cli.yaml_source import Node, parse_value, tree_of

LONGEST = 30
"""Most parts of a path: no option is deeper."""


@dataclass(frozen=True)
class Override:
    """A value for the option with this dotted key, used as it is; `place` stands for it in
    messages.
    """

    key: str
    value: Any
    place: str


Change: TypeAlias = str | Override
"""What `--set` gives, or another command-line option that stands for it."""


def key_of(change: Change) -> str:
    """The dotted path of the option that is changed."""
    return change.key if isinstance(change, Override) else change.partition("=")[0].strip()


def to_plain(change: Change) -> Any:
    """A change as plain values, for another process."""
    return vars(change) if isinstance(change, Override) else change


def from_plain(values: Any) -> Change:
    """The inverse."""
    return Override(**values) if isinstance(values, dict) else str(values)


def apply_overrides(root: Node, overrides: Iterable[Change], options: type[Options]) -> None:
    """Put the values into the tree, whose root is typed as `options`.

    An option that excludes another one (steps and epochs) replaces it, unless both are overridden;
    the replacement is reported on stderr. Raises `SpecError`.
    """
    texts = list(overrides)
    for text in texts:
        apply_override(root, text, options)
    given = set(map(key_of, texts))
    for path in given:
        section, _, name = path.rpartition(".")
        pairs = [
            pair
            for c in classes_at(options, section.split("."))
            for pair in c.exclusive
            if name in pair
        ]
        for other in {word for pair in pairs for word in pair} - {name}:
            if f"{section}.{other}" not in given:
                _replace(root, section, name, other)


def _replace(root: Node, section: str, name: str, other: str) -> None:
    """Remove `other` from the section, where it and `name` are both given."""
    node = root
    for part in section.split("."):
        if not isinstance(node.value, dict) or part not in node.value:
            return
        node = node.value[part]
    # a later override put something else there, which is reported as a fault
    if not isinstance(node.value, dict):
        return
    both = [node.value[word].value for word in (name, other) if word in node.value]
    if len(both) == 2 and None not in both:
        say(f"{section}.{name}: {both[0]} is taken instead of {section}.{other}: {both[1]}")
        del node.value[other]


def apply_override(root: Node, override: Change, options: type[Options]) -> None:
    """Put the value of ``a.b.0.c=VALUE`` into the tree, creating mappings along its path.

    Raises `SpecError`.
    """
    if isinstance(override, Override):
        if not _is_unicode(override.value):
            raise SpecError(
                f"{override.place}: {override.value!r} is not UTF-8, and no spec can record it;"
                " rename it, or give a link to it"
            )
        value = tree_of(override.value, override.place)
        _put(root, override.key.split("."), value, override.place, options)
        return
    key, equals, text = override.partition("=")
    path = key.split(".")
    place = f"--set {_short(override)}"
    if not equals or not all(path):
        raise SpecError(
            f"{place}: write --set KEY=VALUE with a dotted key, for instance --set train.steps=100"
        )
    if len(path) > LONGEST:
        raise SpecError(f"{place}: {len(path):,} words; no option's path is that long")
    _put(root, path, parse_value(text, place), place, options)


def _put(root: Node, path: list[str], value: Node, place: str, options: type[Options]) -> None:
    """Put a value at its path."""
    node = root
    for index, part in enumerate(path):
        last = index == len(path) - 1
        if isinstance(node.value, list):
            number = _number(part, node.value, f"{place}: {'.'.join(path[:index])}")
            node.value[number] = value if last else _copy(node.value[number])
            node = node.value[number]
            continue
        if isinstance(node.value, str) and node.value in types_at(options, path[:index]):
            # the mapping that the word stands for
            node.value = {"type": Node(node.value, node.where)}
        if not isinstance(node.value, dict):
            if node.value is not None:
                raise SpecError(
                    f"{place}: {'.'.join(path[:index])} is a value, and has no {_short(part)!r}"
                    " inside"
                )
            node.value = {}
        if last:
            node.value[part] = value
        else:
            node.value[part] = _copy(node.value[part]) if part in node.value else Node({}, place)
        node.keys[part] = place
        node = node.value[part]


def _is_unicode(value: Any) -> bool:
    return not isinstance(value, str) or not any(
        "\ud800" <= character <= "\udfff" for character in value
    )


def _number(part: str, items: list[Node], place: str) -> int:
    """The index of an item.

    Raises `SpecError` where there is no such item.
    """
    if part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(items):
        return int(part)
    if not items:
        raise SpecError(
            f"{place} is an empty list, without an item {_short(part)!r}; give the whole list"
        )
    held = "one item, 0" if len(items) == 1 else f"the items 0 to {len(items) - 1}"
    first = (
        ""
        if not part.isidentifier()
        else f"; write {place.rpartition(': ')[2]}.0.{_short(part)} for that of the first"
    )
    raise SpecError(f"{place} has {held}, not {_short(part)!r}{first}")


def _short(text: str) -> str:
    """An override as messages show it."""
    return text if len(text) <= 100 else text[:97] + "..."


def _copy(node: Node) -> Node:
    """A copy one level deep: an override below an alias must not change the anchor's other uses."""
    return Node(copy(node.value), node.where, dict(node.keys), node.size)
